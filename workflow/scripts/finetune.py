from pathlib import Path

from interlace.logs import script_log

gpus = snakemake.resources.gpu and max(
    snakemake.resources.gpu, snakemake.config["finetune"]["processes"]
)
with script_log(snakemake.log[0], snakemake.threads, gpus):
    from interlace.training.run import finetune

    finetune(
        Path(snakemake.input.base),
        Path(snakemake.input.plan),
        Path(snakemake.input.samples),
        Path(snakemake.output[0]),
        snakemake.config["finetune"],
        model=snakemake.wildcards.model,
        variant=snakemake.wildcards.tuned,
        seed=snakemake.params.seed,
        vision=next(iter(snakemake.input.vision), None),
        cpus=snakemake.threads,
        mem_mb=snakemake.resources.mem_mb,
    )
