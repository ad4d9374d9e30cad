from pathlib import Path

import yaml

from interlace.io import write_text
from interlace.logs import script_log

with script_log(snakemake.log[0], snakemake.threads):
    text = yaml.safe_dump(snakemake.params.config, sort_keys=False, allow_unicode=True)
    write_text(Path(snakemake.output[0]), text)
