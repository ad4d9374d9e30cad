from pathlib import Path

from interlace.logs import script_log

with script_log(snakemake.log[0], snakemake.threads):
    from interlace.evaluation.prepare import prepare_benchmark

    root = Path(snakemake.output[0]).parent
    for dataset in snakemake.params.datasets:
        prepare_benchmark(dataset, root, snakemake.params.source)
