"""The notes below a table: what its marks mean and how its numbers were measured."""

from collections.abc import Collection, Mapping
from typing import Any

from interlace.evaluation.intervals import DEFINED, FEWEST_QUESTIONS, RESAMPLES
from interlace.reporting.labels import MODE_LABELS, model_label, parse_variant
from interlace.reporting.layout import Table
from interlace.reporting.paper import load_paper
from interlace.reporting.results import Results

PAPER_TOKENS = {"cot": 16384, "limited": 50}
SHARE_WORTH_SAYING = 0.01
_ANSWERS = {
    "unparsed": "could not be parsed",
    "empty": "are empty",
    "cut": "were cut at the limit on new tokens",
}
_MOST_NAMED = 3


def token_notes(results: Results) -> list[str]:
    """Say how many new tokens each mode allowed, ours and the paper's."""
    notes = []
    for mode, label in MODE_LABELS.items():
        limits = results.max_new_tokens(mode)
        if limits:
            ours = " or ".join(map(str, limits))
            notes.append(f"{label}: at most {ours} new tokens, in the paper {PAPER_TOKENS[mode]}.")
    return notes


def device_notes(results: Results) -> list[str]:
    """Say what TTFT was measured on, and on how many samples."""
    timings = [t for group in results.timings.values() for t in group.values()]
    devices = sorted({t.device for t in timings if t.device})
    counts = sorted({t.num_samples for t in timings if t.num_samples})
    if not devices:
        return []
    span = "-".join(dict.fromkeys(map(str, (*counts[:1], *counts[-1:]))))
    samples = f", {span} samples per benchmark" if counts else ""
    return [f"TTFT of ours: on {', '.join(devices)}{samples}."]


def kernel_notes(results: Results, model: str) -> list[str]:
    """Say what kernels a model's timed 2:4 variants ran on: zeros save time on some only."""
    timed = {
        (timing.kernels, timing.kernels_reason)
        for (key, variant), group in results.timings.items()
        if key == model and variant.endswith("_2_4")
        for timing in group.values()
        if timing.kernels
    }
    names = {"dense": "dense kernels, which gain nothing from zeros"}
    kernels = [
        f"{names.get(name, 'the semi-structured kernels of torch')} ({reason})"
        for name, reason in sorted(timed)
    ]
    return [f"TTFT of 2:4 variants: on {', '.join(kernels)}."] if kernels else []


def resampling(seed: int) -> str:
    """Return how intervals of scores are made."""
    return (
        f"percentile bootstrap, {RESAMPLES:,} resamples of the questions, seed {seed}; benchmarks "
        "independently of each other, and what is compared on the same draws (paired)"
    )


def interval_notes(table: Table, seed: int, measured: Collection[str] = ()) -> list[str]:
    """Say what intervals are, where they stand, and how many numbers have none.

    `measured`: columns whose numbers are no scores, so that their lack of one is not counted.
    """
    columns = [column for column in table.columns if column.key not in measured]
    cells = [table.cell(row, column) for row in table.rows for column in columns]
    ours = [cell for cell in cells if cell.ours is not None]
    undefined = [cell.defined for cell in ours if cell.defined is not None]
    lacking = sum(cell.low is None for cell in ours) - len(undefined)
    if not ours:
        return []
    if table.number in (4, "TTFT"):
        shown = lacking < len(ours)
        place = "Brackets" if table.intervals else "In the CSV"
        text = f"{place}: 95 % intervals of the speed-ups, bootstrap over the timed samples."
        return [text] if shown else []
    notes = []
    if lacking + len(undefined) < len(ours):
        place = "Brackets" if table.intervals else "In the CSV"
        notes.append(f"{place}: 95 % intervals; {resampling(seed)}.")
    if lacking:
        notes.append(
            f"No interval: {lacking} of {len(ours)} numbers, whose results have no outcomes of single "
            "samples beside them (.parquet)."
        )
    if undefined:
        notes.append(
            f"No interval: {len(undefined)} of {len(ours)} numbers, which exist in fewer than "
            f"{100 * DEFINED:.0f} % of the resamples ({_percent(min(undefined))} at the least): what "
            "they are relative to scores 0 in the others."
        )
    return notes + seed_notes(table)


def few_notes(results: Results) -> list[str]:
    """Say on how many benchmarks intervals rest on too few questions."""
    few = {
        name
        for scores in results.scores.values()
        for name, score in scores.items()
        if score.low is not None or score.outcomes
        if score.num_samples is not None and score.num_samples < FEWEST_QUESTIONS
    }
    if not few:
        return []
    return [
        f"Intervals are too narrow with fewer than {FEWEST_QUESTIONS} samples: {len(few)} benchmark(s)."
    ]


def seed_notes(table: Table) -> list[str]:
    """Say what ± is, if there is any."""
    cells = [table.cell(row, column) for row in table.rows for column in table.columns]
    counts = sorted({cell.spread.count for cell in cells if cell.spread})
    if not counts:
        return []
    return [
        f"±: mean and sample standard deviation over {' or '.join(map(str, counts))} seeds; what a "
        "number is relative to stands at its own mean. Intervals are of the questions alone, at the "
        "seeds' mean."
    ]


def grader_notes(results: Results) -> list[str]:
    """Say which model graded which benchmarks, and with what version of the prompt."""
    found: dict[tuple[str, str | None], set[str]] = {}
    for scores in results.scores.values():
        for name, score in scores.items():
            if score.grader:
                found.setdefault((score.grader, score.prompt), set()).add(name)
    return [
        f"Graded by {grader}{f', prompt {prompt}' if prompt else ''}: "
        f"{', '.join(name for name in load_paper().names if name in names)}."
        for (grader, prompt), names in sorted(found.items(), key=lambda item: str(item[0]))
    ]


def answer_notes(results: Results, models: Mapping[str, Any]) -> list[str]:
    """Say of which variants more than 1 % of the answers were unparsed, empty or cut short."""
    several = len({model for model, _, _ in results.scores}) > 1
    notes = []
    for key, what in _ANSWERS.items():
        parts = []
        for (model, variant, mode), scores in sorted(results.scores.items()):
            shares = {name: getattr(score, key) or 0.0 for name, score in scores.items()}
            high = {n: share for n, share in shares.items() if share > SHARE_WORTH_SAYING}
            if high:
                name = f"{model_label(model, models)} " if several else ""
                label = parse_variant(variant).full_label
                parts.append(f"{name}{label}, {MODE_LABELS[mode]}: {_benchmarks(high)}")
        if parts:
            notes.append(f"Above 1 % of the answers {what}: {'; '.join(parts)}.")
    return notes


def _benchmarks(shares: Mapping[str, float]) -> str:
    """Return the benchmarks by share, the largest first; of many the number and the largest."""
    order = sorted(shares, key=lambda name: -shares[name])
    if len(order) > _MOST_NAMED:
        return f"{len(order)} benchmarks, most on {order[0]} ({_percent(shares[order[0]])})"
    return ", ".join(f"{name} {_percent(shares[name])}" for name in order)


def _percent(share: float) -> str:
    return f"{100 * share:.3g} %" if share < 0.0995 else f"{100 * share:.0f} %"


def cell_notes(table: Table) -> list[str]:
    """Explain the marks that stand in a table's cells and count what is missing."""
    cells = [table.cell(row, column) for row in table.rows for column in table.columns]
    notes = []
    if any(cell.paper is not None for cell in cells):
        notes.append("Differences are ours − the paper's, taken before rounding.")
    if any(cell.partial for cell in cells):
        notes.append(
            "† from part of a benchmark (evaluation.limit); a ratio is over the questions that both "
            "sides answered."
        )
    if any(cell.coverage for cell in cells):
        notes.append(
            "[n/m] averages n of the m benchmarks of the paper's average; not compared with it."
        )
    missing = sum(cell.ours is None for cell in cells)
    if missing:
        notes.append(f"– no result: {missing} of {len(cells)} cells of ours.")
    return notes
