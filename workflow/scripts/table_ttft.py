from pathlib import Path

from interlace.logs import script_log

with script_log(snakemake.log[0], snakemake.threads):
    from interlace.reporting.ttft_outputs import build_ttft_table

    build_ttft_table(
        [Path(p) for p in snakemake.input],
        Path(snakemake.output[0]).with_suffix(""),
        models=snakemake.params.models,
        standin=snakemake.params.standin,
        intervals=snakemake.params.intervals,
        seed=snakemake.params.seed,
    )
