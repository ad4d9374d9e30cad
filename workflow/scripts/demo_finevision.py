from pathlib import Path

from interlace.logs import script_log

with script_log(snakemake.log[0], snakemake.threads):
    from interlace.demo.finevision import write_finevision

    write_finevision(
        Path(snakemake.output[0]), rows=snakemake.params.rows, seed=snakemake.params.seed
    )
