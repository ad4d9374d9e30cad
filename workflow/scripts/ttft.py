from pathlib import Path

from interlace.logs import script_log

with script_log(snakemake.log[0], 1, snakemake.resources.gpu):
    from interlace.evaluation.ttft import measure_ttft

    folders = map(Path, snakemake.input.variants)
    measure_ttft(
        Path(snakemake.input.dense),
        dict(zip(snakemake.params.variants, folders, strict=True)),
        snakemake.params.benchmarks,
        Path(snakemake.input.benchmarks[0]).parent,
        Path(snakemake.output[0]).parents[1],
        snakemake.params.evaluation | snakemake.params.settings | {"dtype": snakemake.params.dtype},
        model=snakemake.params.model,
        seed=snakemake.params.seed,
        memory_mb=snakemake.resources.mem_mb,
    )
