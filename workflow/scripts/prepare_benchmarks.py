from pathlib import Path

from interlace.logs import script_log

with script_log(snakemake.log[0], snakemake.threads):
    from interlace.evaluation.prepare import prepare_benchmarks

    prepare_benchmarks(
        snakemake.params.datasets, Path(snakemake.output[0]).parent, snakemake.params.source
    )
