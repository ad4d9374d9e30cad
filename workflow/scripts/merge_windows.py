from pathlib import Path

from interlace.logs import script_log

with script_log(snakemake.log[0], snakemake.threads):
    from interlace.scoring.chunks import merge_shards

    merge_shards(
        [Path(shard) for shard in snakemake.input.shards],
        Path(snakemake.input.samples),
        Path(snakemake.output.windows).parent,
        parts=Path(snakemake.params.parts),
        seed=snakemake.params.seed,
    )
