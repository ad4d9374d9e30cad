import contextlib
from pathlib import Path

from interlace.logs import script_log

with (
    script_log(snakemake.log[0], snakemake.threads, snakemake.resources.gpu),
    contextlib.ExitStack() as stack,
):
    from interlace.evaluation.run import evaluate

    settings = snakemake.config["evaluation"] | {"dtype": snakemake.params.dtype}
    settings["replicas"] = settings["replicas"] or max(1, snakemake.resources.gpu)
    if settings["grader"]["kind"] == "demo":
        from interlace.demo.grader import running_grader

        base_url, grader = stack.enter_context(running_grader())
        settings["grader"] = settings["grader"] | {"base_url": base_url, "model": grader}
    evaluate(
        Path(snakemake.input.checkpoint),
        snakemake.params.benchmarks,
        Path(snakemake.input.benchmarks[0]).parent,
        Path(snakemake.output[0]).parent,
        settings,
        model=snakemake.wildcards.model,
        variant=snakemake.wildcards.variant,
        mode=snakemake.wildcards.mode,
        seed=snakemake.params.seed,
        sampling_seed=snakemake.params.sampling_seed,
    )
