from pathlib import Path

from interlace.logs import script_log

with script_log(snakemake.log[0], snakemake.threads):
    from interlace.reporting.build import build_table

    build_table(
        int(snakemake.wildcards.table),
        evaluation_files=[Path(p) for p in snakemake.input.evaluations],
        ttft_files=[Path(p) for p in snakemake.input.ttft],
        models=snakemake.params.models,
        experiments=snakemake.params.experiments,
        standin=snakemake.params.standin,
        intervals=snakemake.params.intervals,
        seed=snakemake.params.seed,
        stem=Path(snakemake.output[0]).with_suffix(""),
    )
