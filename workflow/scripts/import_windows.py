from pathlib import Path

from interlace.logs import script_log

with script_log(snakemake.log[0], snakemake.threads):
    from interlace.decoder.layers import num_layers
    from interlace.scoring.released import import_released

    base = Path(snakemake.input.base)
    import_released(
        [Path(file) for file in snakemake.input.released],
        base,
        Path(snakemake.output.windows).parent,
        model_key=snakemake.wildcards.model,
        num_layers=num_layers(base),
    )
