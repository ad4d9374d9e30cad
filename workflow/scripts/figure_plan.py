from pathlib import Path

from interlace.logs import script_log

with script_log(snakemake.log[0], snakemake.threads):
    from interlace.reporting.build import build_figure2

    build_figure2(
        Path(snakemake.input[0]),
        Path(snakemake.output[0]).with_suffix(""),
        standin=snakemake.params.standin,
        label=snakemake.params.label,
    )
