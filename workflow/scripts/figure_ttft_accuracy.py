from pathlib import Path

from interlace.logs import script_log

with script_log(snakemake.log[0], snakemake.threads):
    from interlace.reporting.ttft_outputs import build_ttft_accuracy

    build_ttft_accuracy(
        [Path(p) for p in snakemake.input.evaluations],
        [Path(p) for p in snakemake.input.ttft],
        Path(snakemake.output[0]).with_suffix(""),
        model=snakemake.params.model,
        label=snakemake.params.label,
        standin=snakemake.params.standin,
        seed=snakemake.params.seed,
    )
