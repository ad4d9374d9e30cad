from pathlib import Path

from interlace.logs import script_log

with script_log(snakemake.log[0], snakemake.threads):
    from interlace.demo.models import write_base_model

    write_base_model(snakemake.params.name, Path(snakemake.output[0]))
