from pathlib import Path

from interlace.logs import script_log

with script_log(snakemake.log[0], snakemake.threads):
    from interlace.reporting.build import build_significance

    build_significance(
        snakemake.params.tables,
        evaluation_files=[Path(p) for p in snakemake.input.evaluations],
        models=snakemake.params.models,
        experiments=snakemake.params.experiments,
        standin=snakemake.params.standin,
        seed=snakemake.params.seed,
        stem=Path(snakemake.output[0]).with_suffix(""),
    )
