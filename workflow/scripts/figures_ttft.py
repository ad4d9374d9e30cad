from pathlib import Path

from interlace.logs import script_log

with script_log(snakemake.log[0], snakemake.threads):
    from interlace.reporting.ttft_outputs import build_ttft_figures

    build_ttft_figures(
        [Path(p) for p in snakemake.input],
        Path(snakemake.output[0]).parent,
        models=snakemake.params.models,
        standin=snakemake.params.standin,
        method=snakemake.params.method,
    )
