from pathlib import Path

from interlace.logs import script_log

with script_log(snakemake.log[0], snakemake.threads):
    from interlace.decoder.layers import num_layers
    from interlace.depth import check_depth
    from interlace.models import fetch_base_model

    base = Path(snakemake.output[0])
    fetch_base_model(**snakemake.params.model, out=base)
    check_depth(snakemake.config, snakemake.wildcards.model, num_layers(base))
