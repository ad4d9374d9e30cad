from pathlib import Path

from interlace.logs import script_log

with script_log(snakemake.log[0], snakemake.threads):
    from interlace.models import fetch_base_model

    fetch_base_model(**snakemake.params.model, out=Path(snakemake.output[0]))
