"""The experiment grid as files: what every rule reads and writes.

A pure function of the configuration; loads without torch. Every path below a run's folder is
spelled here and nowhere else, so that the rules can stay free of functions.
"""

import re
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from interlace.evaluation.benchmarks import BENCHMARKS
from interlace.experiments import Cell, Experiments, unique
from interlace.io import read_json
from interlace.scoring.released_files import released_files, released_names
from interlace.selection.method import Method
from interlace.selection.registry import METHODS
from interlace.training.recipe import resolve
from interlace.variants import checkpoint_id, plan_id, split_plan_id

# What plans are made from, beside the base model: name, file of the scores, which methods need it.
PLAN_INPUTS: tuple[tuple[str, str, Callable[[Method], bool]], ...] = (
    ("windows", "windows.parquet", lambda method: method.needs_scores),
    ("sleb", "sleb.json", lambda method: method.needs_sleb),
    ("losses", "block_losses.json", lambda method: method.needs_losses),
)


@dataclass(frozen=True)
class Grid(Experiments):
    """The experiments of a configuration and their files. `root` is the run's folder."""

    root: Path = field(init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "root", Path("results") / self.config["run"])

    def path(self, *parts: str) -> str:
        """Return a path below the run's folder."""
        return str(self.root.joinpath(*parts))

    def checkpoint(self, model: str, variant: str) -> str:
        """Return the folder of a variant's checkpoint; the base model's for dense."""
        name = checkpoint_id(variant)
        if name == "dense":
            return self.path(model, "base")
        return self.path(model, "checkpoints", name)

    def plan_file(self, model: str, variant: str) -> str:
        """Return the plan that a variant's checkpoint is made by."""
        return self.path(model, "plans", f"{plan_id(variant)}.json")

    def plan_inputs(self, model: str, plan: str) -> dict[str, Any]:
        """Return the files a plan is made from, by the name that the plan's rule knows them by."""
        return {"base": self.path(model, "base")} | {
            name: self.path(model, "scores", file)
            for name, file, needs in PLAN_INPUTS
            if needs(METHODS[split_plan_id(plan)[0]])
        }

    def vision_inputs(self, model: str) -> list[str]:
        """Return the folder of stored vision features that fine-tuning reads, if it does."""
        cached = resolve(self.config["finetune"]).vision == "cached"
        return [self.path(model, "vision")] if cached else []

    def node_resources(self) -> dict[str, Any]:
        """Return what SLURM must be asked for besides, where a training job has several nodes.

        `mpi` keeps the executor from starting one task with all of the job's GPUs on one node, and
        `tasks_per_gpu` from counting tasks by GPU: our launcher starts an agent on each node.
        """
        nodes = self.config["finetune"]["nodes"]
        if nodes == 1:
            return {}
        return {"nodes": nodes, "tasks": nodes, "tasks_per_gpu": 0, "mpi": "srun"}

    def score_files(self) -> list[str]:
        """Return the score files of every model: the similarities, and what other plans go by."""
        packs = ("pack1.json", "pack2.json", "pack3.json")
        files = [self.path(m, "scores", pack) for m in self.scored_models() for pack in packs]
        measured = [m for m in self.scored_models() if not self.config["models"][m]["scores"]]
        files += [file for m in measured for file in self.released_files(m)]
        inputs = [self.plan_inputs(model, plan) for model, plan in self.plans_wanted()]
        return (
            unique(path for found in inputs for name, path in found.items() if name != "base")
            + files
        )

    def shard_file(self, model: str, shard: int | str) -> str:
        """Return the file of one shard of a model's similarity scores."""
        return self.path(
            model, "scores", "shards", f"{shard}-of-{self.config['scoring']['shards']}.parquet"
        )

    def shard_files(self, model: str) -> list[str]:
        """Return the files of all shards of a model's similarity scores."""
        return [self.shard_file(model, i) for i in range(self.config["scoring"]["shards"])]

    def released_files(self, model: str) -> list[str]:
        """Return a model's similarity scores in the released code's layout, by window size."""
        data = self.config["data"]
        names = released_names(model, Path(data["path"] or "demo").name)
        return [self.path(model, "scores", "released", name) for name in names]

    def imported_files(self, model: str) -> list[str]:
        """Return the files of the released code's layout that a model's scores are taken from."""
        return [str(file) for file in released_files(self.config["models"][model]["scores"])]

    def model_pattern(self, *, imported: bool) -> str:
        """Return a pattern of the models whose similarity scores are imported, or measured."""
        models = self.config["models"].items()
        found = [key for key, model in models if bool(model["scores"]) == imported]
        return "|".join(map(re.escape, found)) or "(?!)"

    def sample_folder(self) -> list[str]:
        """Return the local folder that samples are drawn from; nothing for other addresses."""
        data = self.config["data"]
        if data["source"] == "demo":
            return [self.path("demo", "finevision")]
        return [data["path"]] if data["source"] == "local" else []

    def sample_inputs(self) -> list[str]:
        """Return the files that a sample is planned from; the folder where a rule makes it."""
        if self.config["data"]["source"] != "local":
            return self.sample_folder()
        (folder,) = map(Path, self.sample_folder())
        return sorted(str(p) for depth in ("*/*", "*/*/*") for p in folder.glob(f"{depth}.parquet"))

    def base_inputs(self, model: str) -> list[str]:
        """Return the files of a local checkpoint that decide what the model is."""
        entry = self.config["models"][model]
        if entry["source"] != "local":
            return []
        folder = Path(entry["path"])
        return [str(folder / "config.json"), *sorted(map(str, folder.glob("*.safetensors")))]

    def sample_source(self) -> str:
        """Return the folder or the address that samples are drawn from."""
        data = self.config["data"]
        if data["source"] == "hub":
            revision = f"@{data['revision']}" if data["revision"] else ""
            return f"hf://datasets/{data['path']}{revision}"
        if data["source"] == "address":
            return data["path"]
        return self.sample_folder()[0]

    def subset_folders(self, plan: str) -> list[str]:
        """Return the folder of each subset that a sampling plan, once made, draws rows from."""
        subsets = read_json(plan)["subsets"]
        return [
            self.path("sampling", "subsets", name)
            for name, entry in subsets.items()
            if entry["target"]
        ]

    def benchmark_sources(self, benchmarks: list[str] | None = None) -> list[str]:
        """Return the TSVs that benchmarks (the run's by default) are prepared from.

        Nothing where VLMEvalKit fetches them.
        """
        source = self.config["evaluation"]["source"]
        if source == "official":
            return []
        folder = self.path("benchmarks") if source == "demo" else source
        return [str(Path(folder) / f"{dataset}.tsv") for dataset in self.datasets(benchmarks)]

    def datasets(self, benchmarks: list[str] | None = None) -> list[str]:
        """Return VLMEvalKit's names of benchmarks (the run's by default)."""
        names = self.config["evaluation"]["benchmarks"] if benchmarks is None else benchmarks
        return [BENCHMARKS[name].dataset for name in names]

    def benchmark_files(self, benchmarks: list[str] | None = None) -> list[str]:
        """Return the records of prepared benchmarks (the run's by default)."""
        return [self.path("benchmarks", f"{dataset}.json") for dataset in self.datasets(benchmarks)]

    def evaluation_files(self, cells: list[Cell] | None = None) -> list[str]:
        """Return the result files of `cells` (all cells by default)."""
        return [
            self.path(c.model, "evaluation", c.variant, c.mode, f"{name}.json")
            for c in (self.all_cells() if cells is None else cells)
            for name in self.config["evaluation"]["benchmarks"]
        ]

    def outcome_files(self, cells: list[Cell] | None = None) -> list[str]:
        """Return the tables of per-sample outcomes beside `evaluation_files`."""
        return [f"{file.removesuffix('.json')}.parquet" for file in self.evaluation_files(cells)]

    def ttft_files(
        self, pairs: list[tuple[str, str]] | None = None, benchmarks: list[str] | None = None
    ) -> list[str]:
        """Return the TTFT files of (model, variant) `pairs` on `benchmarks` (all by default)."""
        return [
            self.path(model, "ttft", variant, f"{name}.json")
            for model, variant in (self.all_ttft() if pairs is None else pairs)
            for name in benchmarks or self.config["evaluation"]["benchmarks"]
        ]

    def table_inputs(self, table: int) -> dict[str, list[str]]:
        """Return the result files that a table is made from."""
        return {
            "evaluations": self.evaluation_files(self.cells(table)),
            "outcomes": self.outcome_files(self.cells(table)),
            "ttft": self.ttft_files(self.ttft_variants(table)),
        }

    def table_files(self, table: int) -> list[str]:
        """Return the files of a table in every format."""
        return self._formats(f"table{table}")

    def ttft_table_files(self) -> list[str]:
        """Return the files of what TTFT comes with: decoding, memory, what was possible."""
        return self._formats("ttft") if self.all_ttft() else []

    def significance_files(self) -> list[str]:
        """Return the files of the table of significance; none where no methods are compared."""
        return self._formats("significance") if self.significance_tables() else []

    def _formats(self, name: str) -> list[str]:
        return [self.path("tables", f"{name}.{end}") for end in ("csv", "md", "tex", "html")]

    def example_files(self) -> list[str]:
        """Return the sheet of examples, if the run has one."""
        wanted = self.config["reporting"]["examples"] and self.example_cells()
        return [self.path("examples", f"{self.primary}.html")] if wanted else []

    def figure_names(self) -> list[str]:
        """Return the figures that the run's tables have the data for."""
        names = [f"figure2_{plan}_{model}" for model, plan in self.plans_wanted()]
        if 6 in self.config["tables"]:
            names.append("figure3_finetuning")
        if self.scored_models():
            names.append("figure4_similarity")
        tuned = self.tuned_wanted()
        names += [f"training_{variant}_{model}" for model, variant in tuned]
        if tuned:
            names.append("training_overview")
        if self.all_ttft():
            names += ["ttft_speedup", "ttft_breakdown", "ttft_tokens"]
        if self.accuracy_cells():
            names.append("ttft_accuracy")
        return names

    def plan_figure_files(self) -> list[str]:
        """Return the files of every plan's figure."""
        return self.figure_files([n for n in self.figure_names() if n.startswith("figure2_")])

    def figure_files(self, names: list[str] | None = None) -> list[str]:
        """Return the files of figures (all by default) in every format."""
        return [
            self.path("figures", f"{name}.{extension}")
            for name in (self.figure_names() if names is None else names)
            for extension in ("svg", "pdf", "png")
        ]
