"""Tables 1-6 as data: the paper's rows and columns, ours beside the paper's.

`make_table` knows what stands in which cell; `interlace.reporting.render` how it is written down.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

from interlace.errors import InputError
from interlace.reporting import averages
from interlace.reporting.alike import check_alike
from interlace.reporting.averages import Average
from interlace.reporting.estimates import Estimate, Rule, combine
from interlace.reporting.labels import MODE_LABELS, Variant, method_label, model_label
from interlace.reporting.layout import Cell, Column, Row, Table
from interlace.reporting.notes import (
    answer_notes,
    cell_notes,
    device_notes,
    few_notes,
    grader_notes,
    interval_notes,
    kernel_notes,
    token_notes,
)
from interlace.reporting.paper import MODELS, OVERALL, Paper
from interlace.reporting.resamples import Resampler
from interlace.reporting.results import Results
from interlace.reporting.seeds import over_seeds, spread
from interlace.reporting.sources import DENSE, DENSE_FT, Sources
from interlace.reporting.timings import Timing, check_timings_alike, mean_interval

SPEEDUP = "ttft_speedup"


def make_table(
    number: int,
    results: Results,
    paper: Paper,
    models: Mapping[str, Mapping[str, Any]],
    experiments: Mapping[str, Any],
    standin: Sequence[str] = (),
    *,
    intervals: bool = False,
    seed: int = 0,
) -> Table:
    """Return one of the paper's Tables 1-6.

    `models` and `experiments` are those sections of the config. A model's `paper` key (`8B`, `4B`
    or null) says which column of the paper it stands beside. What was not run is an empty cell; an
    average over fewer benchmarks than the paper's says so and is not compared. Variants are averaged
    over their seeds. `intervals`: whether they are shown; `seed`: of the draws that they come from.

    InputError for results that were not made in the same way.
    """
    makers: dict[int, Callable[[Sources], Table]] = {
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
    check_alike(results)
    if number in (2, 4):
        check_timings_alike(results.timings)
    results = over_seeds(results)
    table = makers[number](Sources(results, paper, models, experiments, Resampler(seed)))
    table.intervals = intervals
    table.standin = results.standin_reasons(standin)
    table.notes += interval_notes(table, seed, measured={SPEEDUP} if number == 2 else set())
    table.notes += few_notes(results)
    table.notes += token_notes(results)
    table.notes += grader_notes(results)
    table.notes += answer_notes(results, models)
    table.notes += results.remarks
    table.notes += cell_notes(table)
    if results.ungraded:
        table.notes.append(f"{results.ungraded} answers were not graded.")
    return table


# -- tables with a row per benchmark --------------------------------------------------------------


def _table1(sources: Sources) -> Table:
    columns, zeros = [], []
    for model, ratio, column, printed in _ladder(sources, digits=1):
        dense = sources.scores(DENSE, "cot", model)
        pruned = sources.scores(Variant(sources.method, float(ratio), True), "cot", model)
        columns.append((column, pruned, dense, printed))
        zeros += [name for name in pruned if name in dense and not dense[name].value]
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


def _table4(sources: Sources) -> Table:
    columns = [
        (
            column,
            sources.speedups(model, Variant(sources.method, float(ratio), True)),
            None,
            printed,
        )
        for model, ratio, column, printed in _ladder(sources, digits=2)
    ]
    table = _benchmark_table(
        sources,
        4,
        f"Time to first token: speed-up over Dense after {method_label(sources.method)} pruning (×)",
        columns,
        list(sources.paper.categories),
    )
    for model, ratio, column, _ in _ladder(sources, digits=2):
        timings = sources.timings(model, Variant(sources.method, float(ratio), True))
        for row in filter(lambda row: row.is_average, table.rows):
            names = sources.paper.categories.get(row.key, sources.paper.names)
            key = row.key, column.key
            table.cells[key] = _timed(table.cells[key], timings, names, sources.resampler.seed)
    table.notes.append("Mean TTFT of Dense over mean TTFT of the pruned model.")
    table.notes += device_notes(sources.results)
    return table


def _table5(sources: Sources) -> Table:
    columns = []
    for variant in [*sources.ablations(), sources.reference, DENSE]:
        printed = variant.label if sources.comparable(variant) else None
        column = Column(variant.id, variant.label)
        columns.append((column, sources.scores(variant, "cot"), None, printed))
    title = f"Ablations at {sources.ratio:g} %: scores (0-100), CoT"
    return _benchmark_table(sources, 5, sources.of_primary(title), columns, [])


def _table6(sources: Sources) -> Table:
    columns = []
    for mode, group in MODE_LABELS.items():
        for variant in (DENSE, DENSE_FT):
            printed = f"{mode}_{variant.label}" if sources.primary_in_paper else None
            column = Column(f"{mode} {variant.id}", variant.label, group)
            columns.append((column, sources.scores(variant, mode), None, printed))
    title = "Dense before and after fine-tuning: scores (0-100)"
    return _benchmark_table(sources, 6, sources.of_primary(title), columns, [])


def _ladder(sources: Sources, digits: int) -> list[tuple[str, float, Column, str | None]]:
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


_Scores = dict[str, Estimate]


def _benchmark_table(
    sources: Sources,
    number: int,
    title: str,
    columns: list[tuple[Column, _Scores, _Scores | None, str | None]],
    categories: list[str],
) -> Table:
    """Lay out a table with the twelve benchmarks as rows, then `categories` and the overall mean.

    A column: its scores, what they are divided by (in percent) if anything, the paper's column.
    """
    paper = sources.paper
    rows = [Row(b.name, b.name, b.category) for b in paper.benchmarks]
    rows += [Row(name, name, "Average", True) for name in (*categories, OVERALL)]
    cells = {}
    for column, values, reference, printed in columns:
        for row in rows:
            counterpart = paper.cell(number, row.key, printed) if printed else None
            if row.is_average:
                names = paper.categories.get(row.key, paper.names)
                cell = _cell(_mean(names, reference), names, values, reference, counterpart)
            elif reference is None:
                cell = _own_cell(values.get(row.key), counterpart)
            else:
                names = (row.key,)
                cell = _cell(_mean(names, reference), names, values, reference, counterpart)
            cells[row.key, column.key] = cell
    return Table(number, title, "Benchmark", [c for c, *_ in columns], rows, cells)


# -- tables with a row per method -----------------------------------------------------------------


def _table2(sources: Sources) -> Table:
    paper, names = sources.paper, sources.paper.names
    columns = [
        Column(SPEEDUP, "TTFT speed-up (×)", digits=2),
        *(Column(category, category, "Average score (0-100)") for category in paper.categories),
        Column("average", "All", "Average score (0-100)"),
        Column("relative_performance", "Relative performance (%)"),
    ]
    reference = sources.scores(DENSE_FT, "limited")
    rows, cells = [], {}
    for variant in sources.comparison():
        scores = sources.scores(variant, "limited")
        rows.append(Row(variant.id, variant.label, "", False, _attributes(variant)))
        name = variant.label if sources.comparable(variant) else None
        for column in columns:
            printed = paper.cell(2, name, column.key) if name else None
            if column.key == SPEEDUP:
                cell = _speedup_cell(sources, variant, printed)
            elif column.key == "relative_performance":
                rule = _over(averages.relative_performance, names)
                cell = _cell(rule, names, scores, reference, printed)
            else:
                members = paper.categories.get(column.key, names)
                cell = _cell(_mean(members), members, scores, None, printed)
            cells[variant.id, column.key] = cell
    title = sources.of_primary("Methods compared, limited mode")
    table = Table(2, title, "Method", columns, rows, cells, ("Sparsity", "Fine-tuned"))
    table.notes.append(
        "Relative performance: 100 × the average over Dense-FT's average. TTFT speed-up: mean over "
        "the benchmarks; Dense is 1 by definition."
    )
    table.notes += device_notes(sources.results)
    table.notes += kernel_notes(sources.results, sources.primary)
    return table


def _table3(sources: Sources) -> Table:
    paper, names = sources.paper, sources.paper.names
    reference = sources.scores(sources.reference, "cot")
    columns = [*(Column(c, c) for c in paper.categories), Column("average", "Average")]
    rows, cells = [], {}
    for variant in sources.ablations():
        scores = sources.scores(variant, "cot")
        name = variant.label if sources.comparable(variant) else None
        rows.append(Row(variant.id, variant.label))
        for column in columns:
            members = paper.categories.get(column.key, names)
            printed = paper.cell(3, name, column.key) if name else None
            cell = _cell(_mean(members, reference), members, scores, reference, printed)
            cells[variant.id, column.key] = cell
    label = method_label(sources.method)
    title = f"Ablations at {sources.ratio:g} % relative to {label} (%), CoT"
    table = Table(3, sources.of_primary(title), "Method", columns, rows, cells)
    table.notes.append(f"Mean over benchmarks of 100 × method / {label}.")
    return table


def _attributes(variant: Variant) -> tuple[str, str]:
    if variant.method.endswith("_2_4"):
        sparsity = "50 %"
    else:
        sparsity = f"{variant.ratio or 0:g} %"
    return sparsity, "yes" if variant.tuned else "no"


def _speedup_cell(sources: Sources, variant: Variant, printed: float | None) -> Cell:
    measured = {} if variant == DENSE else sources.speedups(sources.primary, variant)
    if measured:
        names = sources.paper.names
        cell = _cell(_mean(names), names, measured, None, printed)
        timings = sources.timings(sources.primary, variant)
        return _timed(cell, timings, names, sources.resampler.seed)
    measured_here = sources.results.values(sources.primary, variant.id, "limited")
    return (
        Cell(1.0, printed) if variant.method == "dense" and measured_here else Cell(paper=printed)
    )


def _timed(cell: Cell, timings: Mapping[str, Timing], names: Sequence[str], seed: int) -> Cell:
    """Return a mean speed-up over `names` with its interval, where the files have their samples."""
    interval = mean_interval({name: timings[name] for name in names if name in timings}, seed)
    return cell if interval is None else replace(cell, low=interval[0], high=interval[1])


# -- shared ---------------------------------------------------------------------------------------


def _mean(names: Sequence[str], reference: _Scores | None = None) -> Rule:
    """Return the rule of a mean over `names`: of scores, or of ratios where there is a reference."""
    if reference is None:
        return lambda values, _: averages.average(values, names)
    return _over(averages.mean_of_ratios, names)


def _over(rule: Callable[..., Average], names: Sequence[str]) -> Rule:
    return lambda values, reference: rule(values, reference, names)


def _cell(
    rule: Rule,
    names: Sequence[str],
    values: _Scores,
    reference: _Scores | None,
    printed: float | None,
) -> Cell:
    """Return what `rule` makes of the benchmarks `names`, marked where some are missing."""
    estimate, mean = combine(rule, names, values, reference)
    cell = _own_cell(estimate, printed)
    if estimate is None or mean.complete:
        return cell
    return replace(cell, coverage=(mean.count, mean.total))


def _own_cell(estimate: Estimate | None, printed: float | None) -> Cell:
    if estimate is None:
        return Cell(paper=printed)
    low, high = estimate.interval
    return Cell(
        estimate.value,
        printed,
        low,
        high,
        estimate.partial,
        spread=spread(estimate.by_seed),
        defined=None if estimate.defined is None or low is not None else estimate.defined,
    )
