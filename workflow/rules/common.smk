# What every rule file uses: the checked configuration, the grid, wildcards, digests of code.
import os
import sys
from pathlib import Path

SOURCE = str(Path(workflow.basedir) / "src")
# Scripts, their children and jobs on a cluster find the package without an installation.
sys.path.insert(0, SOURCE)
os.environ["PYTHONPATH"] = os.pathsep.join(
    p for p in (SOURCE, os.environ.get("PYTHONPATH")) if p
)

from interlace.config import accelerator_missing, complete, load_schema, standin_reasons
from interlace.demo.models import BASE_MODELS
from interlace.errors import InputError
from interlace.grid import Grid, split_plan_id
from interlace.io import code_digest, digest

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
CONFIG_DIGEST = digest(CONFIG)
# Cheap stages run again when their code changes; a GPU-day is not repeated for a comment.
CODE = {
    room: code_digest(Path(SOURCE, "interlace", room))
    for room in ("demo", "selection", "reporting")
}
BENCHMARKS = CONFIG["evaluation"]["benchmarks"]
RESOURCES = CONFIG["resources"]
LOGS = GRID.path("logs")


wildcard_constraints:
    model="|".join(GRID.models),
    plan="[a-z0-9_]+(-[0-9]+)?",
    variant="[a-z0-9_]+(-[0-9]+)?(-ft)?",
    mode="cot|limited",
    table="[1-6]",


onstart:
    missing = accelerator_missing(CONFIG) if workflow.local_exec else None
    if missing:
        print(f"interlace: {missing}", file=sys.stderr)
        os._exit(1)


onsuccess:
    print(f"interlace: results lie in {GRID.path()}")
