from pathlib import Path

from interlace.logs import script_log

with script_log(snakemake.log[0], snakemake.threads):
    from interlace.sampling.subset import draw_subset

    draw_subset(
        Path(snakemake.input.plan).parent,
        snakemake.wildcards.subset,
        Path(snakemake.output[0]),
        Path(snakemake.params.spool),
        # How it is fetched is no reason to fetch again, so that is in no parameter.
        snakemake.config["data"] | snakemake.params.settings,
        seed=snakemake.params.seed,
    )
