from pathlib import Path

from interlace.logs import script_log

with script_log(snakemake.log[0], snakemake.threads):
    from interlace.grid import split_plan_id
    from interlace.selection.plan import write_plan

    method, ratio = split_plan_id(snakemake.wildcards.plan)
    packs = snakemake.input.get("packs")
    write_plan(
        method,
        ratio,
        Path(packs[0]).parent if packs else None,
        snakemake.input.get("sleb"),
        Path(snakemake.input.base),
        Path(snakemake.output.plan),
        snakemake.params.settings,
        model_key=snakemake.wildcards.model,
        seed=snakemake.params.seed,
        sheet=Path(snakemake.output.sheet),
    )
