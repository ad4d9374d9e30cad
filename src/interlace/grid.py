"""The experiment grid: which checkpoints, evaluations and TTFT files each table needs.

A pure function of the configuration; loads without torch. Every path below a run's folder is
spelled here and nowhere else, so that the rules can stay free of functions.
"""

import re
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from interlace.evaluation.benchmarks import BENCHMARKS, shared_out
from interlace.io import read_json
from interlace.scoring.released_files import released_files, released_names
from interlace.selection.method import Method
from interlace.selection.registry import METHODS, TWO_FOUR
from interlace.training.recipe import resolve

# What plans are made from, beside the base model: name, file of the scores, which methods need it.
PLAN_INPUTS: tuple[tuple[str, str, Callable[[Method], bool]], ...] = (
    ("windows", "windows.parquet", lambda method: method.needs_scores),
    ("sleb", "sleb.json", lambda method: method.needs_sleb),
    ("losses", "block_losses.json", lambda method: method.needs_losses),
)


@dataclass(frozen=True, order=True)
class Cell:
    """One evaluation: a model's variant in a generation mode."""

    model: str
    variant: str
    mode: str


def variant_id(method: str, ratio: int | None = None, *, tuned: bool = False) -> str:
    """Return the id of a variant: `dense`, `dense-ft`, `wanda_2_4`, `interlace-25-ft`, `sleb-25`."""
    return method + (f"-{ratio}" if ratio is not None else "") + ("-ft" if tuned else "")


def split_seed(name: str) -> tuple[str, int | None]:
    """Return (variant or plan, further seed or None) of `interlace-25-ft-s1` and the like."""
    match = re.fullmatch(r"(.*?)(?:-s(\d+))?", name)
    assert match is not None
    return match[1], None if match[2] is None else int(match[2])


def plan_id(variant: str) -> str:
    """Return the plan that a variant's checkpoint is made by; only random ones differ by seed."""
    name, seed = split_seed(variant)
    plan = name.removesuffix("-ft")
    return plan if seed is None or not _chosen_by_chance(plan) else f"{plan}-s{seed}"


def split_plan_id(plan: str) -> tuple[str, int | None]:
    """Return (method, ratio in percent or None) of a plan id."""
    method, _, ratio = split_seed(plan)[0].partition("-")
    return method, int(ratio) if ratio else None


def _chosen_by_chance(plan: str) -> bool:
    method = split_plan_id(plan)[0]
    return method in METHODS and METHODS[method].by_chance


@dataclass(frozen=True)
class Grid:
    """What a configuration asks for. `root` is the run's folder."""

    config: dict[str, Any]
    root: Path = field(init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "root", Path("results") / self.config["run"])

    # -- the experiments ------------------------------------------------------------------------

    @property
    def models(self) -> list[str]:
        """Keys of all base models."""
        return list(self.config["models"])

    @property
    def primary(self) -> str:
        """Key of the model that methods are compared on."""
        return self.config["experiments"]["primary"]

    @property
    def reference(self) -> str:
        """Variant of the main method at the ratio of the comparisons."""
        experiments = self.config["experiments"]
        return variant_id(experiments["method"], experiments["ratio"], tuned=True)

    def ladder(self) -> list[str]:
        """Variants of Tables 1 and 4: the main method at every ratio, tuned."""
        experiments = self.config["experiments"]
        return [variant_id(experiments["method"], r, tuned=True) for r in experiments["ratios"]]

    def comparison(self) -> list[str]:
        """Variants of Table 2 in its order: Dense, Dense-FT, the baselines, the main method."""
        experiments = self.config["experiments"]
        rows = ["dense", "dense-ft"]
        for method in experiments["baselines"]:
            if method in TWO_FOUR:
                rows.append(method)
            else:
                rows += [variant_id(method, experiments["ratio"], tuned=t) for t in (False, True)]
        return _unique([*rows, self.reference])

    def ablations(self) -> list[str]:
        """Variants of Tables 3 and 5: the ablations, the main method, Dense."""
        experiments = self.config["experiments"]
        ratio = experiments["ratio"]
        others = [variant_id(m, ratio, tuned=True) for m in experiments["ablations"]]
        return _unique([*others, self.reference, "dense"])

    def seed(self, name: str) -> int:
        """Return the seed of a variant or a plan: the run's, or the one in its name."""
        seed = split_seed(name)[1]
        return self.config["seed"] if seed is None else seed

    def seeded(self, variant: str) -> list[str]:
        """Return a variant and, where chance has a part in it, its repetitions with other seeds."""
        sampled = self.config["evaluation"]["decoding"] != "greedy"
        seeds = self.config["experiments"]["seeds"]
        if not (sampled or _made_by_chance(variant)):
            return [variant]
        return [variant, *(f"{variant}-s{seed}" for seed in seeds)]

    def cells(self, table: int) -> list[Cell]:
        """Return the evaluations that a table is made of, with every seed."""
        return [
            Cell(cell.model, variant, cell.mode)
            for cell in self._cells(table)
            for variant in self.seeded(cell.variant)
        ]

    def _cells(self, table: int) -> list[Cell]:
        if table == 1:
            variants = ["dense", *self.ladder()]
            return [Cell(m, v, "cot") for m in self.models for v in variants]
        if table == 2:
            return [Cell(self.primary, v, "limited") for v in self.comparison()]
        if table in (3, 5):
            return [Cell(self.primary, v, "cot") for v in self.ablations()]
        if table == 6:
            modes = ("cot", "limited")
            return [Cell(self.primary, v, m) for m in modes for v in ("dense", "dense-ft")]
        return []

    def ttft_variants(self, table: int) -> list[tuple[str, str]]:
        """Return the (model, variant) pairs whose TTFT a table shows; dense is in each pair's file."""
        if table == 4:
            return [(m, v) for m in self.models for v in self.ladder()]
        if table == 2:
            return [(self.primary, v) for v in self.comparison() if v != "dense"]
        return []

    def all_cells(self) -> list[Cell]:
        """Return every evaluation of the run, each once, in the order of the tables."""
        return _unique(c for t in self.config["tables"] for c in self.cells(t))

    def all_ttft(self) -> list[tuple[str, str]]:
        """Return every (model, variant) whose TTFT the run measures, each once."""
        return _unique(p for t in self.config["tables"] for p in self.ttft_variants(t))

    def accuracy_cells(self) -> list[Cell]:
        """Return the primary model's evaluations of Dense and of what TTFT is measured of.

        In every mode that has any of the latter; fine-tuned or not, a plan is as fast.
        """
        timed = {plan_id(v) for m, v in self.all_ttft() if m == self.primary} - {"dense"}
        found = []
        for mode in ("limited", "cot"):
            cells = [c for c in self.all_cells() if (c.model, c.mode) == (self.primary, mode)]
            plans = {cell: plan_id(split_seed(cell.variant)[0]) for cell in cells}
            if timed & {*plans.values()}:
                found += [cell for cell in cells if plans[cell] in timed | {"dense"}]
        return found

    def ttft_groups(self) -> list[tuple[str, list[str]]]:
        """Return (model, variants) groups that one TTFT job measures beside dense.

        All of a model by default: variants of equal depth, which must be as fast, are compared.
        """
        groups = []
        for model in self.models:
            variants = [v for m, v in self.all_ttft() if m == model]
            size = self.config["ttft"]["variants_per_job"] or max(1, len(variants))
            groups += [(model, variants[i : i + size]) for i in range(0, len(variants), size)]
        return groups

    def checkpoints_wanted(self) -> list[tuple[str, str]]:
        """Return every (model, variant) that the run makes a checkpoint of (dense is the base)."""
        pairs = [(c.model, _checkpoint_id(c.variant)) for c in self.all_cells()] + self.all_ttft()
        return _unique(p for p in pairs if p[1] != "dense")

    def tuned_wanted(self) -> list[tuple[str, str]]:
        """Return those of `checkpoints_wanted` that are fine-tuned."""
        return [(m, v) for m, v in self.checkpoints_wanted() if split_seed(v)[0].endswith("-ft")]

    def plans_wanted(self) -> list[tuple[str, str]]:
        """Return every (model, plan id) that the run makes."""
        pairs = [(m, plan_id(v)) for m, v in self.checkpoints_wanted() if v not in TWO_FOUR]
        return _unique(pairs)

    # -- paths ----------------------------------------------------------------------------------

    def path(self, *parts: str) -> str:
        """Return a path below the run's folder."""
        return str(self.root.joinpath(*parts))

    def checkpoint(self, model: str, variant: str) -> str:
        """Return the folder of a variant's checkpoint; the base model's for dense."""
        name = _checkpoint_id(variant)
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
            _unique(path for found in inputs for name, path in found.items() if name != "base")
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

    def sleb_ratio(self) -> int:
        """Return the percent of layers that SLEB's search has to remove for every plan's sake."""
        plans = [split_plan_id(plan) for _, plan in self.plans_wanted()]
        ratios = [ratio for method, ratio in plans if METHODS[method].needs_sleb and ratio]
        return max(ratios, default=self.config["experiments"]["ratio"])

    def scored_models(self) -> list[str]:
        """Return the models that a plan needs the similarity scores of."""
        plans = self.plans_wanted()
        return _unique(m for m, p in plans if METHODS[split_plan_id(p)[0]].needs_scores)

    def sample_folder(self) -> list[str]:
        """Return the local folder that samples are drawn from; nothing for other addresses."""
        data = self.config["data"]
        if data["source"] == "demo":
            return [self.path("demo", "finevision")]
        return [data["path"]] if data["source"] == "local" else []

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

    def benchmark_sources(self) -> list[str]:
        """Return the TSVs that benchmarks are prepared from; nothing where VLMEvalKit fetches them."""
        source = self.config["evaluation"]["source"]
        if source == "official":
            return []
        folder = self.path("benchmarks") if source == "demo" else source
        return [str(Path(folder) / f"{dataset}.tsv") for dataset in self.datasets()]

    def datasets(self, benchmarks: list[str] | None = None) -> list[str]:
        """Return VLMEvalKit's names of benchmarks (the run's by default)."""
        names = self.config["evaluation"]["benchmarks"] if benchmarks is None else benchmarks
        return [BENCHMARKS[name].dataset for name in names]

    def benchmark_files(self) -> list[str]:
        """Return the record of every prepared benchmark."""
        return [self.path("benchmarks", f"{dataset}.json") for dataset in self.datasets()]

    def benchmark_groups(self) -> list[list[str]]:
        """Return the run's benchmarks shared out among the evaluation jobs of a variant and mode."""
        evaluation = self.config["evaluation"]
        return shared_out(evaluation["benchmarks"], evaluation["groups"])

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

    def ttft_files(self, pairs: list[tuple[str, str]] | None = None) -> list[str]:
        """Return the TTFT files of (model, variant) `pairs` (all by default)."""
        return [
            self.path(model, "ttft", variant, f"{name}.json")
            for model, variant in (self.all_ttft() if pairs is None else pairs)
            for name in self.config["evaluation"]["benchmarks"]
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

    def significance_tables(self) -> list[int]:
        """Return the run's tables that compare methods."""
        return [table for table in (2, 3, 5) if table in self.config["tables"]]

    def significance_cells(self) -> list[Cell]:
        """Return the evaluations that methods are compared by."""
        return _unique(c for table in self.significance_tables() for c in self.cells(table))

    def significance_files(self) -> list[str]:
        """Return the files of the table of significance; none where no methods are compared."""
        return self._formats("significance") if self.significance_tables() else []

    def _formats(self, name: str) -> list[str]:
        return [self.path("tables", f"{name}.{end}") for end in ("csv", "md", "tex", "html")]

    def example_cells(self) -> list[Cell]:
        """Return Dense and the main method, where both were evaluated in one mode (CoT first)."""
        cells = self.all_cells()
        for mode in ("cot", "limited"):
            pair = [Cell(self.primary, variant, mode) for variant in ("dense", self.reference)]
            if all(cell in cells for cell in pair):
                return pair
        return []

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


def _made_by_chance(variant: str) -> bool:
    """Whether a checkpoint differs by seed: fine-tuned, or its layers drawn at random."""
    name = split_seed(variant)[0]
    return name.endswith("-ft") or _chosen_by_chance(name)


def _checkpoint_id(variant: str) -> str:
    """Return the variant whose checkpoint this one is evaluated with."""
    return variant if _made_by_chance(variant) else split_seed(variant)[0]


def _unique(items: Any) -> list[Any]:
    return list(dict.fromkeys(items))
