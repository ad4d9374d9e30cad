from pathlib import Path

from interlace.logs import script_log

with script_log(snakemake.log[0], snakemake.threads):
    from interlace.reporting.build import build_audit

    build_audit(Path(snakemake.output[0]).with_suffix(""))
