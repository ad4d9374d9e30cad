from pathlib import Path

from interlace.logs import script_log

with script_log(snakemake.log[0], snakemake.threads):
    from interlace.data.finevision import draw_samples

    draw_samples(
        snakemake.params.source,
        Path(snakemake.output.samples),
        snakemake.params.settings,
        seed=snakemake.params.seed,
    )
