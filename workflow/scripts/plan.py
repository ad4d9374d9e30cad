from pathlib import Path

from interlace.logs import script_log

with script_log(snakemake.log[0], snakemake.threads):
    from interlace.selection.registry import write_plan_files

    from interlace.grid import split_plan_id

    method, ratio = split_plan_id(snakemake.wildcards.plan)
    write_plan_files(
        method,
        ratio,
        scores_dir=Path(snakemake.input.packs[0]).parent,
        sleb=Path(sleb) if (sleb := snakemake.input.get("sleb")) else None,
        base=Path(snakemake.input.base),
        out=Path(snakemake.output.plan),
        sheet=Path(snakemake.output.sheet),
        settings=snakemake.params.settings,
        model_key=snakemake.wildcards.model,
        seed=snakemake.params.seed,
    )
