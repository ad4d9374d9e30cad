"""The TTFT figures: speed-up per benchmark and ratio, and where the time goes."""

from collections.abc import Mapping, Sequence
from typing import Any

import matplotlib.pyplot as plt
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch
from matplotlib.ticker import FuncFormatter

from interlace.reporting.figures import (
    BLUE,
    GREY,
    INK,
    LIGHT,
    MARKERS,
    ORANGE,
    PURPLE,
    SERIES,
    SKY,
    VERMILION,
    WIDE,
    mark_standin,
    placeholder,
    styled,
)
from interlace.reporting.labels import Variant, model_label, parse_variant
from interlace.reporting.paper import Paper
from interlace.reporting.results import Results
from interlace.reporting.timings import Timing

PARTS = {
    "preprocessing": ("preprocessing (before t = 0, below)", SKY),
    "vision": ("vision tower", ORANGE),
    "projector": ("projector", VERMILION),
    "decoder": ("decoder", BLUE),
    "first_sampling": ("first sampling", PURPLE),
    "rest": ("rest", LIGHT),
}
"""Of a bar, from the bottom: label and colour."""


def ladder(results: Results, model: str, method: str = "interlace") -> list[Variant]:
    """Return the model's timed fine-tuned variants of a method, by ratio."""
    variants = [parse_variant(name) for key, name in results.timings if key == model]
    chosen = [v for v in variants if v.method == method and v.ratio is not None and v.tuned]
    return sorted(chosen, key=lambda v: v.ratio)


def timed_models(results: Results, models: Mapping[str, Any]) -> list[str]:
    """Return the models of the config that have timings, in the config's order."""
    for model, _ in results.timings:
        model_label(model, models)
    timed = {model for model, _ in results.timings}
    return [model for model in models if model in timed]


@styled
def draw_speedup(
    results: Results,
    models: Mapping[str, Mapping[str, Any]],
    paper: Paper,
    method: str,
    standin: Sequence[str] = (),
) -> Figure:
    """Draw speed-ups with 95 % intervals by benchmark and ratio, a panel per model.

    The paper's numbers (Table 4) are hollow markers beside ours, for ratios that it has.
    """
    shown = [m for m in timed_models(results, models) if ladder(results, m, method)]
    figure, panels = model_panels(len(shown))
    if not shown:
        placeholder(panels[0], "no TTFT measured")
    ratios = sorted({v.ratio for m in shown for v in ladder(results, m, method)})
    names = [n for n in paper.names if any(n in t for t in results.timings.values())]
    for axes, model in zip(panels, shown, strict=False):
        size = models[model].get("paper") if method == "interlace" else None
        for variant in ladder(results, model, method):
            i = ratios.index(variant.ratio)
            timings = results.timings[model, variant.id]
            _speedup_series(axes, timings, names, i, len(ratios))
            printed = [paper.cell(4, name, f"{size}_{variant.ratio:g}") for name in names]
            points = [
                (k + _offset(i, len(ratios)) + 0.055, value)
                for k, value in enumerate(printed)
                if value is not None
            ]
            if points:
                style = {"color": SERIES[i % 6], "markerfacecolor": "white", "alpha": 0.9}
                axes.plot(*zip(*points, strict=True), MARKERS[i % 6], **style)
        axes.axhline(1, color=GREY, linewidth=0.8, linestyle=(0, (4, 3)))
        axes.set_title(model_label(model, models))
        axes.set_ylabel("TTFT speed-up (×)")
        axes.grid(axis="y")
        _benchmark_axis(axes, names)
    _speedup_legend(figure, ratios)
    mark_standin(figure, standin)
    return figure


def _offset(i: int, count: int) -> float:
    return (i - (count - 1) / 2) * 0.72 / max(count, 1)


def _speedup_series(
    axes: Axes, timings: Mapping[str, Any], names: Sequence[str], i: int, count: int
) -> None:
    for k, name in enumerate(names):
        if name not in timings:
            continue
        timing = timings[name]
        x, colour = k + _offset(i, count) - 0.055, SERIES[i % 6]
        if timing.low is not None and timing.high is not None:
            axes.plot([x, x], [timing.low, timing.high], color=colour, linewidth=0.9)
        axes.plot([x], [timing.speedup], MARKERS[i % 6], color=colour)


def _speedup_legend(figure: Figure, ratios: Sequence[float]) -> None:
    handles = [
        Line2D([], [], marker=MARKERS[i % 6], linestyle="", color=SERIES[i % 6], label=f"{r:g} %")
        for i, r in enumerate(ratios)
    ]
    style = {"marker": "o", "linestyle": "", "color": INK}
    handles += [
        Line2D([], [], label="ours, 95 % interval", **style),
        Line2D([], [], label="paper", markerfacecolor="white", **style),
    ]
    figure.legend(handles=handles, loc="outside upper right", ncols=len(handles))


@styled
def draw_breakdown(
    results: Results,
    models: Mapping[str, Mapping[str, Any]],
    paper: Paper,
    method: str,
    standin: Sequence[str] = (),
) -> Figure:
    """Draw mean times by benchmark as bars of what they are spent on, dense beside pruned.

    In percent of Dense's TTFT, which differs a hundredfold between benchmarks; milliseconds stand
    above the bars. Preprocessing, on the CPU and before TTFT begins, lies below zero. Pruned is the
    largest ratio of `method` that was timed; a panel per model.
    """
    chosen = largest(results, models, method)
    figure, panels = model_panels(len(chosen), height=2.5)
    if not chosen:
        placeholder(panels[0], "no TTFT measured")
    names = [n for n in paper.names if any(n in t for t in results.timings.values())]
    seen: set[str] = set()
    for axes, (model, variant) in zip(panels, chosen.items(), strict=False):
        timings = results.timings[model, variant.id]
        for k, name in enumerate(names):
            if name in timings:
                seen |= _bars(axes, k - 0.19, timings[name], "dense")
                seen |= _bars(axes, k + 0.19, timings[name], "pruned")
        axes.axhline(0, color=INK, linewidth=0.6)
        low, high = axes.get_ylim()
        axes.set_ylim(max(low, -_BELOW), high + 0.28 * (high - max(low, -_BELOW)))
        axes.set_title(pair_title(model, variant, models))
        axes.set_ylabel("% of Dense's TTFT (above: ms)")
        axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{abs(value):g}"))
        axes.grid(axis="y")
        _benchmark_axis(axes, names)
    handles = [
        Patch(facecolor=colour, edgecolor="none", label=label)
        for part, (label, colour) in PARTS.items()
        if part in seen
    ]
    handles += [
        Patch(facecolor="white", edgecolor=INK, linewidth=0.6, label="left: Dense"),
        Patch(facecolor="white", edgecolor=INK, linewidth=0.6, hatch="////", label="right: pruned"),
    ]
    figure.legend(handles=handles, loc="outside upper right", ncols=(len(handles) + 1) // 2)
    mark_standin(figure, standin)
    return figure


def largest(results: Results, models: Mapping[str, Any], method: str) -> dict[str, Variant]:
    """Return each timed model's variant of `method` with the largest ratio."""
    found = {model: ladder(results, model, method) for model in timed_models(results, models)}
    return {model: variants[-1] for model, variants in found.items() if variants}


def model_panels(count: int, height: float = 1.9) -> tuple[Figure, Sequence[Axes]]:
    """Return a figure with a panel for each of `count` models, at least one, on top of each other."""
    rows = max(1, count)
    size = (WIDE, 0.9 + height * rows)
    figure, panels = plt.subplots(
        rows, 1, figsize=size, sharex=True, squeeze=False, layout="constrained"
    )
    return figure, panels[:, 0]


def pair_title(model: str, variant: Variant, models: Mapping[str, Any]) -> str:
    """Return the title of a panel that shows Dense beside a variant."""
    return f"{model_label(model, models)}: Dense and {variant.full_label}"


def _bars(axes: Axes, x: float, timing: Timing, side: str) -> set[str]:
    """Stack one bar in percent of Dense's TTFT, its milliseconds above; return its `PARTS`."""
    times: Mapping[str, float | None] = getattr(timing, side)
    known = {part: times.get(part) for part in PARTS if part not in ("preprocessing", "rest")}
    total, whole = times["total"], timing.dense["total"]
    assert total  # as read from their file
    assert whole
    parts = {part: seconds for part, seconds in known.items() if seconds and seconds > 0}
    rest = total - sum(parts.values())
    if rest > 0.005 * total:
        parts["rest"] = rest
    style: dict[str, Any] = {"edgecolor": "white", "linewidth": 0.4}
    if side == "pruned":
        style["hatch"] = "////"
    bottom = 0.0
    for part, seconds in parts.items():
        share = 100 * seconds / whole
        axes.bar(x, share, 0.34, bottom, color=PARTS[part][1], **style)
        bottom += share
    _write_time(axes, x, bottom, total)
    if not timing.preprocessing:
        return set(parts)
    below = 100 * timing.preprocessing / whole
    axes.bar(x, below, 0.34, -below, color=PARTS["preprocessing"][1], **style)
    if below > _BELOW and side == "dense":
        text = f"{1000 * timing.preprocessing:.3g} ms"
        axes.text(x, -0.97 * _BELOW, text, rotation=90, **_SMALL, va="bottom")
    return {*parts, "preprocessing"}


_BELOW = 100.0
"""Percent of Dense's TTFT: a longer preprocessing is cut off there, and written on the bar."""
_SMALL: dict[str, Any] = {"ha": "center", "fontsize": 5.5, "color": INK}


def _write_time(axes: Axes, x: float, height: float, seconds: float) -> None:
    milliseconds = 1000 * seconds
    text = f"{milliseconds:.0f}" if milliseconds >= 99.5 else f"{milliseconds:.3g}"
    axes.annotate(
        text,
        (x, height),
        xytext=(0, 2),
        textcoords="offset points",
        rotation=90,
        va="bottom",
        **_SMALL,
    )


def _benchmark_axis(axes: Axes, names: Sequence[str]) -> None:
    axes.set_xticks(range(len(names)), names, rotation=25, ha="right", rotation_mode="anchor")
    axes.set_xlim(-0.6, max(len(names), 1) - 0.4)
    for k in range(len(names) - 1):
        axes.axvline(k + 0.5, color=LIGHT, linewidth=0.5, zorder=0)
