"""The experiments of a run: which evaluations, timings, plans and checkpoints its tables need.

A pure function of the configuration; loads without torch.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, TypeVar

from interlace.evaluation.benchmarks import BENCHMARKS, shared_out
from interlace.selection.registry import METHODS, TWO_FOUR
from interlace.variants import (
    checkpoint_id,
    made_by_chance,
    plan_id,
    split_plan_id,
    split_seed,
    variant_id,
)

T = TypeVar("T")


@dataclass(frozen=True, order=True)
class Cell:
    """One evaluation: a model's variant in a generation mode."""

    model: str
    variant: str
    mode: str


@dataclass(frozen=True)
class Experiments:
    """What a configuration asks for."""

    config: dict[str, Any]

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
        return unique([*rows, self.reference])

    def ablations(self) -> list[str]:
        """Variants of Tables 3 and 5: the ablations, the main method, Dense."""
        experiments = self.config["experiments"]
        ratio = experiments["ratio"]
        others = [variant_id(m, ratio, tuned=True) for m in experiments["ablations"]]
        return unique([*others, self.reference, "dense"])

    def seed(self, name: str) -> int:
        """Return the seed of a variant or a plan: the run's, or the one in its name."""
        seed = split_seed(name)[1]
        return self.config["seed"] if seed is None else seed

    def seeded(self, variant: str) -> list[str]:
        """Return a variant and, where chance has a part in it, its repetitions with other seeds."""
        sampled = self.config["evaluation"]["decoding"] != "greedy"
        seeds = self.config["experiments"]["seeds"]
        if not (sampled or made_by_chance(variant)):
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
        return unique(c for t in self.config["tables"] for c in self.cells(t))

    def all_ttft(self) -> list[tuple[str, str]]:
        """Return every (model, variant) whose TTFT the run measures, each once."""
        return unique(p for t in self.config["tables"] for p in self.ttft_variants(t))

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
        """Return (model, variants) groups that a TTFT job measures beside dense.

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
        pairs = [(c.model, checkpoint_id(c.variant)) for c in self.all_cells()] + self.all_ttft()
        return unique(p for p in pairs if p[1] != "dense")

    def tuned_wanted(self) -> list[tuple[str, str]]:
        """Return those of `checkpoints_wanted` that are fine-tuned."""
        return [(m, v) for m, v in self.checkpoints_wanted() if split_seed(v)[0].endswith("-ft")]

    def plans_wanted(self) -> list[tuple[str, str]]:
        """Return every (model, plan id) that the run makes."""
        pairs = [(m, plan_id(v)) for m, v in self.checkpoints_wanted() if v not in TWO_FOUR]
        return unique(pairs)

    def sleb_ratio(self) -> int:
        """Return the percent of layers that SLEB's search has to remove for every plan's sake."""
        plans = [split_plan_id(plan) for _, plan in self.plans_wanted()]
        ratios = [ratio for method, ratio in plans if METHODS[method].needs_sleb and ratio]
        return max(ratios, default=self.config["experiments"]["ratio"])

    def scored_models(self) -> list[str]:
        """Return the models that a plan needs the similarity scores of."""
        plans = self.plans_wanted()
        return unique(m for m, p in plans if METHODS[split_plan_id(p)[0]].needs_scores)

    def benchmark_groups(self) -> list[list[str]]:
        """Return the run's benchmarks shared out among the jobs of a variant and mode.

        One that is added to a run, or left out, leaves the others where they were: all twelve are
        shared out, wanted or not, unless each can have a group of its own.
        """
        wanted, groups = (
            self.config["evaluation"]["benchmarks"],
            self.config["evaluation"]["groups"],
        )
        if len(wanted) <= groups:
            return [[name] for name in wanted]
        found = [[n for n in wanted if n in group] for group in shared_out([*BENCHMARKS], groups)]
        return [group for group in found if group]

    def significance_tables(self) -> list[int]:
        """Return the run's tables that compare methods."""
        return [table for table in (2, 3, 5) if table in self.config["tables"]]

    def significance_cells(self) -> list[Cell]:
        """Return the evaluations that methods are compared by."""
        return unique(c for table in self.significance_tables() for c in self.cells(table))

    def example_cells(self) -> list[Cell]:
        """Return Dense and the main method, where both were evaluated in one mode (CoT first)."""
        cells = self.all_cells()
        for mode in ("cot", "limited"):
            pair = [Cell(self.primary, variant, mode) for variant in ("dense", self.reference)]
            if all(cell in cells for cell in pair):
                return pair
        return []


def unique(items: Iterable[T]) -> list[T]:
    """Return `items`, each once, in the order of its first place."""
    return list(dict.fromkeys(items))
