from pathlib import Path

from interlace.logs import script_log

with script_log(snakemake.log[0], snakemake.threads):
    from interlace.demo.benchmarks import write_benchmarks

    folder = Path(snakemake.output[0]).parent
    write_benchmarks(folder, rows=snakemake.params.rows, seed=snakemake.params.seed)
