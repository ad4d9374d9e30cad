from pathlib import Path

from interlace.logs import script_log

with script_log(snakemake.log[0], snakemake.threads):
    from interlace.sampling.conversations import export_conversations

    counts = export_conversations(Path(snakemake.input[0]), Path(snakemake.output[0]))
    print(", ".join(f"{count} {name}" for name, count in counts.items()))
