# What every rule file uses: the checked configuration, the grid, wildcards, digests of code.
import sys
from pathlib import Path

SOURCE = str(Path(workflow.basedir) / "src")
sys.path.insert(0, SOURCE)

from interlace.config import complete, load_schema, standin_reasons
from interlace.demo.models import BASE_MODELS
from interlace.environment import accelerator_missing, share_package
from interlace.errors import InputError
from interlace.grid import Grid
from interlace.io import code_digest

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
