from pathlib import Path

from interlace.logs import script_log

with script_log(snakemake.log[0], snakemake.threads):
    from interlace.sampling.merge import merge_samples

    merge_samples(
        Path(snakemake.input.plan).parent,
        {Path(folder).name: Path(folder) for folder in snakemake.input.subsets},
        Path(snakemake.output.samples),
        snakemake.params.settings,
        seed=snakemake.params.seed,
    )
