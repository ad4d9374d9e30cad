from pathlib import Path

from interlace.logs import script_log

with script_log(snakemake.log[0], snakemake.threads) as say:
    from interlace.sampling.plan import plan_samples

    plan_samples(
        snakemake.params.source,
        Path(snakemake.output.plan).parent,
        # How it is fetched is no reason to fetch again, so that is in no parameter.
        snakemake.config["data"] | snakemake.params.settings,
        seed=snakemake.params.seed,
        say=say,
    )
