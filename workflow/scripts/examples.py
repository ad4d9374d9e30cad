from pathlib import Path

from interlace.logs import script_log

with script_log(snakemake.log[0], snakemake.threads):
    from interlace.reporting.examples_page import write_examples

    write_examples(
        [Path(p) for p in snakemake.input.results],
        Path(snakemake.input.benchmarks[0]).parent,
        Path(snakemake.output[0]),
        samples=snakemake.params.samples,
        label=snakemake.params.label,
        reasons=snakemake.params.standin,
    )
