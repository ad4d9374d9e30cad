from pathlib import Path

from interlace.logs import script_log

with script_log(snakemake.log[0], snakemake.threads):
    from interlace.training.run import finetune

    finetune(
        Path(snakemake.input.base),
        Path(snakemake.input.plan),
        None,
        Path(snakemake.output[0]),
        {"tune": False},
        model=snakemake.wildcards.model,
        variant=snakemake.wildcards.plan,
        seed=snakemake.params.seed,
    )
