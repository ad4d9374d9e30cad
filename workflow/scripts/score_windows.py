from pathlib import Path

from interlace.logs import script_log

with script_log(snakemake.log[0], snakemake.threads):
    from interlace.scoring.similarity import score_windows

    score_windows(
        Path(snakemake.input.base),
        Path(snakemake.input.samples),
        Path(snakemake.output.windows).parent,
        snakemake.params.settings | {"dtype": snakemake.params.dtype},
        model_key=snakemake.wildcards.model,
        seed=snakemake.params.seed,
    )
