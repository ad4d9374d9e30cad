from pathlib import Path

from interlace.logs import script_log

with script_log(snakemake.log[0], snakemake.threads):
    from interlace.scoring.released import export_released

    export_released(
        Path(snakemake.input[0]),
        Path(snakemake.output[0]).parent,
        [Path(file).name for file in snakemake.output],
    )
