from pathlib import Path

from interlace.logs import script_log

with script_log(snakemake.log[0], snakemake.threads):
    from interlace.reporting.build import build_figure4

    files = [Path(p) for p in snakemake.input]
    packs = {label: files[3 * i : 3 * i + 3] for i, label in enumerate(snakemake.params.labels)}
    build_figure4(
        packs, Path(snakemake.output[0]).with_suffix(""), standin=snakemake.params.standin
    )
