from pathlib import Path

from interlace.logs import script_log

with script_log(snakemake.log[0], snakemake.threads, snakemake.resources.gpu):
    from interlace.scoring.sleb import run_sleb

    run_sleb(
        Path(snakemake.input.base),
        Path(snakemake.input.samples),
        Path(snakemake.output[0]),
        snakemake.params.settings
        | {
            "dtype": snakemake.params.dtype,
            "cache_gb": snakemake.config["sleb"]["cache_gb"],
        },
        ratio=snakemake.params.ratio,
        protect=snakemake.params.protect,
        model_key=snakemake.wildcards.model,
        seed=snakemake.params.seed,
        memory_mb=snakemake.resources.mem_mb,
    )
