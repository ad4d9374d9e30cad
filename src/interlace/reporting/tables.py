"""Tables 1-6 as data: the paper's rows and columns, ours beside the paper's.

`make_table` knows what stands in which cell; `interlace.reporting.render` how it is written down.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from interlace.errors import InputError
from interlace.reporting import averages
from interlace.reporting.averages import Average
from interlace.reporting.labels import Variant, method_label, model_label, parse_variant
from interlace.reporting.layout import Cell, Column, Row, Table
from interlace.reporting.notes import (
    MODE_LABELS,
    cell_notes,
    device_notes,
    kernel_notes,
    token_notes,
)
from interlace.reporting.paper import ABLATION_RATIO, MODELS, OVERALL, Paper
from interlace.reporting.results import Results, Score

PAPER_ABLATIONS = ("consecutive", "random", "interlace_oa", "interlace_tn")


@dataclass(frozen=True)
class _Value:
    """A benchmark's number before it has a place in a table."""

    value: float
    low: float | None = None
    high: float | None = None
    partial: bool = False


@dataclass(frozen=True)
class _Sources:
    """What every table is made from."""

    results: Results
    paper: Paper
    models: Mapping[str, Mapping[str, Any]]
    experiments: Mapping[str, Any]

    @property
    def primary(self) -> str:
        return self.experiments["primary"]

    @property
    def ratio(self) -> float:
        return self.experiments["ratio"]

    @property
    def method(self) -> str:
        return self.experiments.get("method", "interlace")

    @property
    def reference(self) -> Variant:
        """The main method at the ratio of the comparisons, fine-tuned."""
        return Variant(self.method, float(self.ratio), True)

    @property
    def primary_in_paper(self) -> bool:
        """Tables 2, 3, 5 and 6 are about the 8B."""
        return self.models[self.primary].get("paper") == MODELS[0]

    def comparable(self, variant: Variant) -> bool:
        """Whether the paper's cell of this variant's method is about the same thing."""
        return self.primary_in_paper and variant.ratio in (None, ABLATION_RATIO)

    def scores(self, variant: Variant, mode: str, model: str | None = None) -> dict[str, Score]:
        return self.results.values(model or self.primary, variant.id, mode)

    def speedups(self, model: str, variant: Variant) -> dict[str, _Value]:
        """TTFT speed-ups by benchmark; fine-tuning changes no shape, so either form will do."""
        either = (variant, Variant(variant.method, variant.ratio, not variant.tuned))
        for candidate in either:
            timings = self.results.timings.get((model, candidate.id))
            if timings:
                return {n: _Value(t.speedup, t.low, t.high) for n, t in timings.items()}
        return {}


DENSE = Variant("dense", None, False)
DENSE_FT = Variant("dense", None, True)


def make_table(
    number: int,
    results: Results,
    paper: Paper,
    models: Mapping[str, Mapping[str, Any]],
    experiments: Mapping[str, Any],
    standin: Sequence[str] = (),
) -> Table:
    """Return one of the paper's Tables 1-6.

    `models` and `experiments` are those sections of the config. A model's `paper` key (`8B`, `4B`
    or null) says which column of the paper it stands beside. What was not run is an empty cell; an
    average over fewer benchmarks than the paper's says so and is not compared.
    """
    makers: dict[int, Callable[[_Sources], Table]] = {
        1: _table1,
        2: _table2,
        3: _table3,
        4: _table4,
        5: _table5,
        6: _table6,
    }
    if number not in makers:
        raise InputError(f"table {number}: the paper's tables are 1 to 6")
    for model in sorted(results.models):
        model_label(model, models)
    table = makers[number](_Sources(results, paper, models, experiments))
    table.standin = results.standin_reasons(standin)
    table.notes += token_notes(results)
    table.notes += cell_notes(table)
    if results.ungraded:
        table.notes.append(f"{results.ungraded} answers were not graded.")
    return table


# -- tables with a row per benchmark --------------------------------------------------------------


def _table1(sources: _Sources) -> Table:
    columns, zeros = [], []
    for model, ratio, column, printed in _ladder(sources, digits=1):
        dense = sources.scores(DENSE, "cot", model)
        pruned = sources.scores(Variant(sources.method, float(ratio), True), "cot", model)
        percent = averages.relative(_plain(pruned), _plain(dense))
        partial = {n for n in percent if pruned[n].partial or dense[n].partial}
        values = {n: _Value(v, partial=n in partial) for n, v in percent.items()}
        columns.append((column, values, printed))
        zeros += [name for name in pruned if name in dense and name not in percent]
    table = _benchmark_table(
        sources,
        1,
        f"Performance relative to Dense after {method_label(sources.method)} pruning (%)",
        columns,
        list(sources.paper.categories),
    )
    reported = [b.name for b in sources.paper.benchmarks if b.dense_reported]
    table.notes.append(
        "100 × pruned / dense, both CoT. The paper divides by the dense score of the Qwen3 report "
        f"for {', '.join(reported)}; ours always divides by the dense score measured here."
    )
    if zeros:
        table.notes.append(
            f"No relative value where Dense scores 0: {', '.join(dict.fromkeys(zeros))}."
        )
    return table


def _table4(sources: _Sources) -> Table:
    columns = [
        (column, sources.speedups(model, Variant(sources.method, float(ratio), True)), printed)
        for model, ratio, column, printed in _ladder(sources, digits=2)
    ]
    table = _benchmark_table(
        sources,
        4,
        f"Time to first token: speed-up over Dense after {method_label(sources.method)} pruning (×)",
        columns,
        list(sources.paper.categories),
    )
    table.notes.append("Mean TTFT of Dense over mean TTFT of the pruned model.")
    table.notes += device_notes(sources.results)
    return table


def _table5(sources: _Sources) -> Table:
    columns = []
    for variant in [*_ablations(sources), sources.reference, DENSE]:
        printed = variant.label if sources.comparable(variant) else None
        column = Column(variant.id, variant.label)
        columns.append((column, _values(sources.scores(variant, "cot")), printed))
    title = f"Ablations at {sources.ratio:g} %: scores (0-100), CoT"
    return _benchmark_table(sources, 5, _of_primary(sources, title), columns, [])


def _table6(sources: _Sources) -> Table:
    columns = []
    for mode, group in MODE_LABELS.items():
        for variant in (DENSE, DENSE_FT):
            printed = f"{mode}_{variant.label}" if sources.primary_in_paper else None
            column = Column(f"{mode} {variant.id}", variant.label, group)
            columns.append((column, _values(sources.scores(variant, mode)), printed))
    title = "Dense before and after fine-tuning: scores (0-100)"
    return _benchmark_table(sources, 6, _of_primary(sources, title), columns, [])


def _ladder(sources: _Sources, digits: int) -> list[tuple[str, float, Column, str | None]]:
    """Return (model, ratio, column, the paper's column) of Tables 1 and 4; the 8B's columns first."""
    order = {paper: position for position, paper in enumerate(MODELS)}
    models = sorted(sources.models, key=lambda m: order.get(sources.models[m].get("paper"), 9))
    columns = []
    for model in models:
        group = model_label(model, sources.models)
        for ratio in sources.experiments["ratios"]:
            column = Column(f"{model} {ratio:g}", f"{ratio:g} %", group, digits)
            size = sources.models[model].get("paper")
            printed = f"{size}_{ratio:g}" if size and sources.method == "interlace" else None
            columns.append((model, ratio, column, printed))
    return columns


def _benchmark_table(
    sources: _Sources,
    number: int,
    title: str,
    columns: list[tuple[Column, dict[str, _Value], str | None]],
    categories: list[str],
) -> Table:
    """Lay out a table with the twelve benchmarks as rows, then `categories` and the overall mean."""
    paper = sources.paper
    rows = [Row(b.name, b.name, b.category) for b in paper.benchmarks]
    rows += [Row(name, name, "Average", True) for name in (*categories, OVERALL)]
    cells = {}
    for column, values, printed in columns:
        for row in rows:
            counterpart = paper.cell(number, row.key, printed) if printed else None
            if row.is_average:
                names = paper.categories.get(row.key, paper.names)
                cell = _average_cell(averages.average(_plain(values), names), counterpart)
                cell = _mark(cell, names, values)
            elif row.key in values:
                value = values[row.key]
                cell = Cell(value.value, counterpart, value.low, value.high, value.partial)
            else:
                cell = Cell(paper=counterpart)
            cells[row.key, column.key] = cell
    return Table(number, title, "Benchmark", [c for c, _, _ in columns], rows, cells)


# -- tables with a row per method -----------------------------------------------------------------


def _table2(sources: _Sources) -> Table:
    paper = sources.paper
    columns = [
        Column("ttft_speedup", "TTFT speed-up (×)", digits=2),
        *(Column(category, category, "Average score (0-100)") for category in paper.categories),
        Column("average", "All", "Average score (0-100)"),
        Column("relative_performance", "Relative performance (%)"),
    ]
    reference = sources.scores(DENSE_FT, "limited")
    rows, cells = [], {}
    for variant in _comparison(sources):
        scores = sources.scores(variant, "limited")
        values, names = _plain(scores), paper.names
        found = {
            **{c: averages.average(values, members) for c, members in paper.categories.items()},
            "average": averages.average(values, names),
            "relative_performance": averages.relative_performance(values, _plain(reference), names),
        }
        rows.append(Row(variant.id, variant.label, "", False, _attributes(variant)))
        name = variant.label if sources.comparable(variant) else None
        for column in columns:
            printed = paper.cell(2, name, column.key) if name else None
            origin = [scores, reference] if column.key == "relative_performance" else [scores]
            names = paper.categories.get(column.key, paper.names)
            if column.key == "ttft_speedup":
                cell = _speedup_cell(sources, variant, printed)
            else:
                cell = _mark(_average_cell(found[column.key], printed), names, *origin)
            cells[variant.id, column.key] = cell
    title = _of_primary(sources, "Methods compared, limited mode")
    table = Table(2, title, "Method", columns, rows, cells, ("Sparsity", "Fine-tuned"))
    table.notes.append(
        "Relative performance: 100 × the average over Dense-FT's average. TTFT speed-up: mean over "
        "the benchmarks; Dense is 1 by definition."
    )
    table.notes += device_notes(sources.results)
    table.notes += kernel_notes(sources.results, sources.primary)
    return table


def _table3(sources: _Sources) -> Table:
    paper, names = sources.paper, sources.paper.names
    reference = sources.scores(sources.reference, "cot")
    columns = [*(Column(c, c) for c in paper.categories), Column("average", "Average")]
    rows, cells = [], {}
    for variant in _ablations(sources):
        scores = sources.scores(variant, "cot")
        name = variant.label if sources.comparable(variant) else None
        rows.append(Row(variant.id, variant.label))
        for column in columns:
            members = paper.categories.get(column.key, names)
            mean = averages.mean_of_ratios(_plain(scores), _plain(reference), members)
            printed = paper.cell(3, name, column.key) if name else None
            cell = _mark(_average_cell(mean, printed), members, scores, reference)
            cells[variant.id, column.key] = cell
    label = method_label(sources.method)
    title = f"Ablations at {sources.ratio:g} % relative to {label} (%), CoT"
    table = Table(3, _of_primary(sources, title), "Method", columns, rows, cells)
    table.notes.append(f"Mean over benchmarks of 100 × method / {label}.")
    return table


def _comparison(sources: _Sources) -> list[Variant]:
    """Return the rows of Table 2: the paper's, then whatever else was run, the main method last."""
    ratio = float(sources.ratio)
    rows = [
        DENSE,
        DENSE_FT,
        Variant("wanda_2_4", None, False),
        Variant("magnitude_2_4", None, False),
    ]
    rows += [Variant("sleb", ratio, False), Variant("sleb", ratio, True)]
    main = {Variant("interlace", ratio, True), sources.reference}
    rows += sorted(_others(sources, "limited") - {*rows} - main, key=lambda v: v.order)
    return [*rows, *sorted(main - {*rows}, key=lambda v: v == sources.reference)]


def _ablations(sources: _Sources) -> list[Variant]:
    """Return the methods of Tables 3 and 5: the paper's, the config's, whatever else was run."""
    ratio = float(sources.ratio)
    methods = dict.fromkeys([*PAPER_ABLATIONS, *sources.experiments.get("ablations", [])])
    rows = [Variant(method, ratio, True) for method in methods]
    others = {variant for variant in _others(sources, "cot") if variant.ratio is not None}
    rows += sorted(others - {*rows}, key=lambda v: v.order)
    return [variant for variant in rows if variant != sources.reference]


def _others(sources: _Sources, mode: str) -> set[Variant]:
    """Return the primary model's variants in `mode` that belong to the ratio of the comparisons."""
    found = set()
    for model, name, results_mode in sources.results.scores:
        variant = parse_variant(name)
        if model == sources.primary and results_mode == mode:
            found.add(variant)
    return {v for v in found if v.ratio in (None, float(sources.ratio))}


def _attributes(variant: Variant) -> tuple[str, str]:
    if variant.method.endswith("_2_4"):
        sparsity = "50 %"
    else:
        sparsity = f"{variant.ratio or 0:g} %"
    return sparsity, "yes" if variant.tuned else "no"


def _speedup_cell(sources: _Sources, variant: Variant, printed: float | None) -> Cell:
    measured = {} if variant == DENSE else sources.speedups(sources.primary, variant)
    if measured:
        return _average_cell(averages.average(_plain(measured), sources.paper.names), printed)
    if variant.method == "dense" and sources.scores(variant, "limited"):
        return Cell(1.0, printed)
    return Cell(paper=printed)


# -- shared ---------------------------------------------------------------------------------------


def _plain(values: Mapping[str, Any]) -> dict[str, float]:
    return {name: value.value for name, value in values.items()}


def _values(scores: Mapping[str, Score]) -> dict[str, _Value]:
    return {n: _Value(s.value, s.low, s.high, s.partial) for n, s in scores.items()}


def _average_cell(mean: Average, printed: float | None) -> Cell:
    coverage = None if mean.complete or mean.value is None else (mean.count, mean.total)
    return Cell(mean.value, printed, coverage=coverage)


def _mark(cell: Cell, names: Sequence[str], *sources: Mapping[str, Any]) -> Cell:
    """Mark an average over `names` that a partly scored benchmark of any source goes into."""
    partial = cell.ours is not None and any(
        name in values and values[name].partial for values in sources for name in names
    )
    return replace(cell, partial=partial)


def _of_primary(sources: _Sources, title: str) -> str:
    return f"{title}, {model_label(sources.primary, sources.models)}"
