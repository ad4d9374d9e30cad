from pathlib import Path

from interlace.logs import script_log

with script_log(snakemake.log[0], snakemake.threads, snakemake.resources.gpu):
    from interlace.scoring.blocks import score_blocks

    score_blocks(
        Path(snakemake.input.base),
        Path(snakemake.input.samples),
        Path(snakemake.output[0]),
        snakemake.params.settings | {"dtype": snakemake.params.dtype},
        model_key=snakemake.wildcards.model,
        seed=snakemake.params.seed,
    )
