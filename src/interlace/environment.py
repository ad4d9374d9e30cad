"""What a run needs of the machine it is on."""

import os
import shutil
from pathlib import Path
from typing import Any

from interlace.errors import InputError
from interlace.evaluation.grading import check_grader, key_of


def share_package(source: str) -> None:
    """Put the folder `source` on the module path of every process that this one starts."""
    paths = [source, *os.environ.get("PYTHONPATH", "").split(os.pathsep)]
    os.environ["PYTHONPATH"] = os.pathsep.join(dict.fromkeys(p for p in paths if p))


def key_missing(config: dict[str, Any], wanted: list[str]) -> str | None:
    """Return the complaint if a hosted grader of the benchmarks `wanted` has no key in this environment."""
    grader = config["evaluation"]["grader"]
    try:
        if check_grader(grader, wanted) and grader["kind"] == "openai":
            key_of(grader)
    except InputError as error:
        return f"config: {error}"
    return None


def accelerator_missing(config: dict[str, Any]) -> str | None:
    """Return the complaint if this machine lacks the GPUs that a job of the run asks for."""
    stages = [name for name, stage in config["resources"].items() if stage.get("gpu")]
    if not stages or any(Path("/dev").glob("nvidia[0-9]*")) or shutil.which("nvidia-smi"):
        return None
    places = ", ".join(f"resources.{name}.gpu" for name in stages)
    return (
        f"config: {places}: jobs ask for a GPU and this machine has none; run with "
        "--profile profiles/slurm on a cluster, or set these to 0 to run on the CPU"
    )
