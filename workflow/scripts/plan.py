from pathlib import Path

from interlace.logs import script_log

with script_log(snakemake.log[0], snakemake.threads):
    from interlace.selection.plan import write_plan
    from interlace.variants import split_plan_id

    method, ratio = split_plan_id(snakemake.wildcards.plan)
    write_plan(
        method,
        ratio,
        Path(snakemake.input.base),
        Path(snakemake.output.plan),
        snakemake.params.settings,
        model_key=snakemake.wildcards.model,
        seed=snakemake.params.seed,
        windows=snakemake.input.get("windows"),
        sleb=snakemake.input.get("sleb"),
        losses=snakemake.input.get("losses"),
        sheet=Path(snakemake.output.sheet),
    )
