# What every rule file uses: the checked configuration, the grid, wildcards, digests of code.
import os
import re
import sys
from pathlib import Path

SOURCE = str(Path(workflow.basedir) / "src")
sys.path.insert(0, SOURCE)

from interlace.config import complete, load_schema, standin_reasons
from interlace.demo.models import BASE_MODELS
from interlace.environment import accelerator_missing, key_missing, share_package
from interlace.errors import InputError
from interlace.evaluation.settings import deciding
from interlace.grid import Grid
from interlace.io import code_digest, folder_digest
from interlace.sampling.settings import plan_settings, sample_settings, subset_settings
from interlace.selection.registry import METHODS, TWO_FOUR

# Scripts, their children and jobs on a cluster find the package without an installation.
share_package(SOURCE)

try:
    CONFIG = complete(
        config,
        load_schema(Path(workflow.basedir, "workflow/schemas/config.schema.yaml")),
        demo_models={name: spec.num_layers for name, spec in BASE_MODELS.items()},
    )
except InputError as error:
    sys.exit(f"interlace: {error}")

config.clear()
config.update(CONFIG)
GRID = Grid(CONFIG)
STANDIN = standin_reasons(CONFIG)
config["standin"] = STANDIN
SEED = CONFIG["seed"]
# Cheap stages run again when their code changes; a GPU-day is not repeated for a comment.
CODE = {
    room: code_digest(*(Path(SOURCE, "interlace", place) for place in places))
    for room, places in {
        "demo": ["demo"],
        "selection": ["selection"],
        "reporting": [
            "reporting",
            "evaluation/benchmarks.py",
            "evaluation/intervals.py",
            "evaluation/outcomes.py",
            "evaluation/ttft/ratios.py",
            "evaluation/ttft/sanity.py",
            "selection/registry.py",
        ],
    }.items()
}
# The paper's own numbers are in files.
CODE["reporting"] += folder_digest(Path(SOURCE, "interlace/reporting/paper_tables"))
BENCHMARKS = CONFIG["evaluation"]["benchmarks"]
RESOURCES = CONFIG["resources"]
LOGS = GRID.path("logs")
# By name: `sleb_standin` in figure2_sleb-25_standin_8b could be a method, and `8b` a model.
METHOD = f"({'|'.join((*METHODS, *TWO_FOUR))})"


wildcard_constraints:
    model="|".join(map(re.escape, GRID.models)),
    plan=f"{METHOD}(-[0-9]+)?(-s[0-9]+)?",
    tuned=f"{METHOD}(-[0-9]+)?-ft(-s[0-9]+)?",
    variant=f"{METHOD}(-[0-9]+)?(-ft)?(-s[0-9]+)?",
    mode="cot|limited",
    table="[1-6]",


onstart:
    # Only what the jobs at hand need: samples can be drawn on a machine without a GPU.
    jobs = list(workflow.dag.needrun_jobs())
    evaluates = any(job.rule.name.startswith("evaluate_") for job in jobs)
    on_gpu = workflow.local_exec and any(job.resources.get("gpu") for job in jobs)
    missing = [
        key_missing(CONFIG, BENCHMARKS) if evaluates else None,
        accelerator_missing(CONFIG) if on_gpu else None,
    ]
    if any(missing):
        print("\n".join(f"interlace: {m}" for m in missing if m), file=sys.stderr)
        workflow.persistence.unlock()  # else the corrected command finds the folder locked
        os._exit(1)


onsuccess:
    print(f"interlace: results lie in {GRID.path()}")
