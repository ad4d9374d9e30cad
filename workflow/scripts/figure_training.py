from pathlib import Path

from interlace.logs import script_log

with script_log(snakemake.log[0], snakemake.threads):
    from interlace.reporting.figure_training import build_training_figure

    build_training_figure(
        Path(snakemake.input[0]),
        Path(snakemake.output[0]).with_suffix(""),
        model=snakemake.params.label,
        variant=snakemake.wildcards.tuned,
        standin=snakemake.params.standin,
    )
