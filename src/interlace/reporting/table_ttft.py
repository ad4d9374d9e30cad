"""The table of TTFT beside Table 4: what was measured, what was possible, what else it brings."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from interlace.evaluation.ttft.ratios import STAGES
from interlace.evaluation.ttft.sanity import TIMES, check_sanity
from interlace.reporting import averages
from interlace.reporting.labels import Variant, model_label, parse_variant
from interlace.reporting.layout import Cell, Column, Row, Table
from interlace.reporting.notes import cell_notes, device_notes, interval_notes, kernel_notes
from interlace.reporting.paper import ABLATION_RATIO, MODELS, OVERALL, Paper
from interlace.reporting.results import Results
from interlace.reporting.timings import SIDES, Timing, check_timings_alike, mean_interval

_SPEEDUP, _SHARE = "Speed-up (×)", "Share of the variant's TTFT (%)"
STAGE_LABELS = {
    "vision": "vision tower",
    "projector": "projector",
    "decoder": "decoder",
    "first_sampling": "first sampling",
    "rest": "rest",
}
_COLUMNS = (
    Column("layers", "Layers", digits=0),
    Column("speedup", "TTFT", _SPEEDUP, 2),
    Column("possible", "roofline's", _SPEEDUP, 2),
    Column("decoder", "decoder alone", _SPEEDUP, 2),
    Column("end_to_end", "end to end", _SPEEDUP, 2),
    Column("dense_ms", "Dense", "Mean TTFT (ms)", 1),
    Column("pruned_ms", "variant", "Mean TTFT (ms)", 1),
    Column("dense_rate", "Dense", "Decoding (tokens/s)", 1),
    Column("pruned_rate", "variant", "Decoding (tokens/s)", 1),
    Column("dense_memory", "Dense", "Peak memory (MB)", 0),
    Column("pruned_memory", "variant", "Peak memory (MB)", 0),
    Column("dense_disk", "Dense", "Weights on disk (MB)", 1),
    Column("pruned_disk", "variant", "Weights on disk (MB)", 1),
    *(Column(f"share_{stage}", label, _SHARE, 1) for stage, label in STAGE_LABELS.items()),
)


def make_ttft_table(
    results: Results,
    paper: Paper,
    models: Mapping[str, Mapping[str, Any]],
    standin: Sequence[str] = (),
    *,
    intervals: bool = False,
    seed: int = 0,
) -> Table:
    """Return a table with a row per model and timed variant, means over the benchmarks.

    `intervals`: whether they are shown; `seed`: of theirs, which draw samples within each benchmark.
    InputError names a model that is not in `models`, and two files that were not measured in the
    same way; what `check_sanity` finds is in the notes.
    """
    for model in sorted(results.models):
        model_label(model, models)
    check_timings_alike(results.timings)
    rows, cells = [], {}
    for model in models:
        names = [name for key, name in results.timings if key == model]
        variants = sorted(map(parse_variant, names), key=lambda v: (v.order[0], v.ratio or 0, v.id))
        for variant in variants:
            timings = results.timings[model, variant.id]
            row = Row(
                f"{model} {variant.id}",
                variant.full_label,
                attributes=(model_label(model, models),),
            )
            rows.append(row)
            printed = _printed(paper, models[model].get("paper"), variant)
            for key, cell in _cells(timings, paper.names, printed, seed).items():
                cells[row.key, key] = cell
    table = Table(
        "TTFT",  # beside the paper's numbers
        "Time to first token: measured, possible, and what comes with it",
        "Variant",
        list(_COLUMNS),
        rows,
        cells,
        ("Model",),
        standin=results.standin_reasons(standin),
        intervals=intervals,
    )
    table.notes = _notes(results) + device_notes(results)
    for model in models:
        table.notes += kernel_notes(results, model)
    table.notes += interval_notes(table, seed) + _sanity_notes(results) + cell_notes(table)
    return table


def _printed(paper: Paper, size: str | None, variant: Variant) -> float | None:
    """Return the paper's mean speed-up: Table 4's of the main method, else Table 2's."""
    if size is None:
        return None
    if variant.method == "interlace" and variant.tuned:
        return paper.cell(4, OVERALL, f"{size}_{variant.ratio:g}")
    if size == MODELS[0] and variant.ratio in (None, ABLATION_RATIO):
        return paper.cell(2, variant.label, "ttft_speedup")
    return None


def _cells(
    timings: Mapping[str, Timing], names: Sequence[str], printed: float | None, seed: int
) -> dict[str, Cell]:
    def mean(of: Callable[[Timing], float | None], scale: float = 1.0) -> Cell:
        values = {name: of(timing) for name, timing in timings.items()}
        found = averages.average(values, names)
        if found.value is None:
            return Cell()
        coverage = None if found.complete else (found.count, found.total)
        return Cell(scale * found.value, coverage=coverage)

    def with_interval(cell: Cell, stage: str = "") -> Cell:
        low, high = mean_interval(timings, seed, stage) or (None, None)
        return Cell(cell.ours, None if stage else printed, low, high, coverage=cell.coverage)

    def fact(side: str, name: str) -> Callable[[Timing], float | None]:
        return lambda timing: timing.facts.get(side, {}).get(name)

    cells = {
        "layers": mean(fact("pruned", "num_layers")),
        "speedup": with_interval(mean(lambda t: t.speedup)),
        "possible": mean(lambda t: t.possible),
        "decoder": with_interval(mean(lambda t: t.decoder), "decoder"),
        "end_to_end": mean(lambda t: t.end_to_end),
    }
    for side in ("dense", "pruned"):
        cells[f"{side}_ms"] = mean(lambda t, side=side: getattr(t, side)["total"], 1000)
        cells[f"{side}_rate"] = mean(fact(side, "decode_tokens_per_s"))
        cells[f"{side}_memory"] = _largest(timings, fact(side, "peak_memory_bytes"))
        cells[f"{side}_disk"] = _largest(timings, fact(side, "weights_disk_bytes"))
    for stage in STAGES:
        cells[f"share_{stage}"] = mean(lambda t, stage=stage: _share(t, stage), 100)
    return cells


def _largest(timings: Mapping[str, Timing], of: Callable[[Timing], float | None]) -> Cell:
    """Return the largest over the benchmarks, in MB (10^6 bytes)."""
    known = [value for value in map(of, timings.values()) if value is not None]
    return Cell(max(known) / 1e6) if known else Cell()


def _share(timing: Timing, stage: str) -> float | None:
    seconds, total = timing.pruned.get(stage), timing.pruned["total"]
    return None if seconds is None or not total else seconds / total


def _notes(results: Results) -> list[str]:
    timings = [t for group in results.timings.values() for t in group.values()]
    notes = [
        "Means over the benchmarks, each speed-up a ratio of means over its samples; peak memory is "
        "the largest. Dense is what ran beside the variant, in turns.",
        "Roofline: the least time from the config, operations or bytes over the device's measured "
        "peaks; its speed-up is what leaving layers out gains on a device that is used fully.",
        "End to end: from the image file, preprocessing included.",
    ]
    kinds = sorted({t.memory_kind for t in timings if t.memory_kind})
    return [*notes, *(f"Peak memory: {kind}." for kind in kinds)]


def _sanity_notes(results: Results) -> list[str]:
    """Say what is wrong with the times of all jobs together, or that nothing is."""
    bodies, unchecked = [], 0
    for (model, variant), found in results.timings.items():
        for benchmark, timing in found.items():
            try:
                bodies.append(_body(model, variant, benchmark, timing))
            except KeyError:
                unchecked += 1
    notes = [f"Check this: {problem}." for problem in check_sanity(bodies)]
    if bodies and not notes:
        notes.append(
            f"Checked over {len(bodies)} files: times are positive, no stage is negative, decoders "
            "are faster as their depths say, and variants of equal depth agree within their intervals."
        )
    if unchecked:
        notes.append(f"Not checked: {unchecked} files that lack stages, depths or samples.")
    return notes


def _body(model: str, variant: str, benchmark: str, timing: Timing) -> dict[str, Any]:
    """Return what `check_sanity` reads of a file; KeyError where it is not there."""
    body: dict[str, Any] = {"model": model, "variant": variant, "benchmark": benchmark}
    body |= {"kernels": timing.kernels, "split": {}, "samples": timing.samples}
    if any(np.isnan(timing.samples[key]).any() for key in TIMES):
        raise KeyError("samples")
    for side in SIDES:
        times, layers = getattr(timing, side), timing.facts.get(side, {}).get("num_layers")
        split = {stage: times.get(stage) for stage in STAGES}
        if layers is None or None in split.values():
            raise KeyError(side)
        body[side] = {"mean_s": times["total"], "num_layers": round(layers)}
        body["split"][side] = split
    return body
