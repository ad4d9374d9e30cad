from pathlib import Path

from interlace.logs import script_log

with script_log(snakemake.log[0], snakemake.threads, snakemake.resources.gpu):
    from interlace.training.vision_cache import cache_vision

    cache_vision(
        Path(snakemake.input.base),
        Path(snakemake.input.samples),
        Path(snakemake.output[0]),
        snakemake.params.settings | {"workers": snakemake.config["finetune"]["workers"]},
        model=snakemake.wildcards.model,
    )
