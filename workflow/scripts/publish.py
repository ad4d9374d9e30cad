from pathlib import Path

from interlace.logs import script_log

with script_log(snakemake.log[0], snakemake.threads):
    from interlace.publish.run import publish

    publish(
        Path(snakemake.input.checkpoint),
        [Path(file) for file in snakemake.input.evaluations],
        Path(snakemake.output[0]),
        snakemake.params.settings,
        model=snakemake.wildcards.model,
        variant=snakemake.wildcards.variant,
        standin=snakemake.params.standin,
    )
