from pathlib import Path

from interlace.logs import script_log

with script_log(snakemake.log[0], snakemake.threads):
    from interlace.reporting.build import build_contact_sheets

    build_contact_sheets(
        Path(snakemake.input[0]),
        Path(snakemake.output[0]),
        seed=snakemake.params.seed,
        standin=snakemake.params.standin,
    )
