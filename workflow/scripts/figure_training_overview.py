from pathlib import Path

from interlace.logs import script_log

with script_log(snakemake.log[0], snakemake.threads):
    from interlace.reporting.figure_training import build_overview

    runs = zip(snakemake.params.runs, snakemake.input, strict=True)
    checkpoints: dict[str, dict[str, Path]] = {}
    for (label, variant), folder in runs:
        checkpoints.setdefault(label, {})[variant] = Path(folder)
    build_overview(
        checkpoints,
        Path(snakemake.output[0]).with_suffix(""),
        standin=snakemake.params.standin,
    )
