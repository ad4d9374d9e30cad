from pathlib import Path

from interlace.logs import script_log

with script_log(snakemake.log[0], snakemake.threads, snakemake.resources.gpu):
    from interlace.sparsity.run import sparsify

    sparsify(
        Path(snakemake.input.base),
        Path(snakemake.output[0]),
        snakemake.wildcards.method,
        Path(snakemake.input.samples),
        snakemake.params.settings | {"dtype": snakemake.params.dtype},
        model=snakemake.wildcards.model,
        seed=snakemake.params.seed,
    )
