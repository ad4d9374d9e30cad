from pathlib import Path

from interlace.logs import script_log

with script_log(snakemake.log[0], snakemake.threads, snakemake.resources.gpu):
    from interlace.scoring.shards import score_shard

    settings = snakemake.params.settings
    score_shard(
        Path(snakemake.input.base),
        Path(snakemake.input.samples),
        Path(snakemake.output[0]),
        settings | {"dtype": snakemake.params.dtype},
        model_key=snakemake.wildcards.model,
        parts=Path(snakemake.params.parts),
        shard=int(snakemake.wildcards.shard),
        num_shards=settings["shards"],
        workers=snakemake.config["scoring"]["workers"],
    )
