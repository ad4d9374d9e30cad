from pathlib import Path

from interlace.logs import script_log

with script_log(snakemake.log[0], snakemake.threads):
    from interlace.reporting.build import build_samples_table

    build_samples_table(
        Path(snakemake.input[0], "samples.json"),
        Path(snakemake.output[0]).with_suffix(""),
        snakemake.params.standin,
    )
