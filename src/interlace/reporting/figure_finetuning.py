"""Figure 3: how fine-tuning the dense model moves each benchmark."""

from collections.abc import Mapping, Sequence

import matplotlib.pyplot as plt
import numpy
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patheffects import withStroke

from interlace.reporting.figures import (
    BLUE,
    GREY,
    INK,
    NARROW,
    ORANGE,
    VERMILION,
    WIDE,
    mark_standin,
    placeholder,
    styled,
)
from interlace.reporting.labels import MODE_LABELS
from interlace.reporting.paper import Paper
from interlace.reporting.results import MODES, Results

MOST_SQUEEZED = 3
"""How many times wider one panel's range may be than the other's on a shared scale."""


def relative_change(before: Mapping[str, float], after: Mapping[str, float]) -> dict[str, float]:
    """Return 100 x (after - before) / before (percent) by benchmark, where before is above 0."""
    return {
        name: 100 * (after[name] - value) / value
        for name, value in before.items()
        if name in after and value > 0
    }


def changes_of_paper(paper: Paper, mode: str) -> dict[str, float]:
    """Return the relative change of Table 6's Dense in a mode (percent), by benchmark."""
    before, after = (
        paper.column(6, f"{mode}_{name}", paper.names) for name in ("Dense", "Dense-FT")
    )
    return relative_change(before, after)


def changes_of_results(results: Results, model: str, mode: str) -> dict[str, float]:
    """Return our relative change (percent) by benchmark, where both were asked the same."""
    dense, tuned = (results.values(model, variant, mode) for variant in ("dense", "dense-ft"))
    before = {n: s.value for n, s in dense.items() if n in tuned and s.asked_like(tuned[n])}
    return relative_change(before, {n: score.value for n, score in tuned.items()})


@styled
def draw_figure3(
    results: Results, model: str, paper: Paper, label: str, standin: Sequence[str] = ()
) -> Figure:
    """Draw a violin per mode of the relative change by benchmark, ours beside the paper's.

    A dot is a benchmark; a bar the median. The two panels share a scale, unless one of them would be
    squeezed (a stand-in's range may be many times the paper's): then the right one says so.
    """
    mine = {mode: changes_of_results(results, model, mode) for mode in MODES}
    theirs = {mode: changes_of_paper(paper, mode) for mode in MODES}
    figure, (left, right) = plt.subplots(
        1, 2, figsize=(max(NARROW, WIDE - 1.4), 3.0), layout="constrained"
    )
    _panel(left, mine, BLUE, paper.names)
    left.set_title(f"{label} (ours{', parts of benchmarks' if _partial(results, model) else ''})")
    _panel(right, theirs, ORANGE, paper.names)
    right.set_title("Qwen3-VL-8B (paper, Table 6)")
    left.set_ylabel("Change relative to Dense (%)")
    _share_scale(left, right, _span(mine), _span(theirs))
    figure.legend(
        handles=[
            Line2D([], [], marker="o", linestyle="", color=INK, label="one benchmark"),
            Line2D([], [], color=INK, linewidth=2, label="median"),
        ],
        loc="outside upper right",
        ncols=2,
    )
    mark_standin(figure, standin)
    return figure


def _partial(results: Results, model: str) -> bool:
    found = (results.values(model, v, mode) for v in ("dense", "dense-ft") for mode in MODES)
    return any(score.partial for scores in found for score in scores.values())


def _span(changes: Mapping[str, Mapping[str, float]]) -> float:
    """Return the distance of the lowest and the highest change, 0 among them; 0 without any."""
    values = [0.0, *(value for found in changes.values() for value in found.values())]
    return max(values) - min(values)


def _share_scale(left: Axes, right: Axes, mine: float, theirs: float) -> None:
    """Give both panels the same limits, or say on the right one that they differ."""
    if not mine or not theirs:
        return
    if max(mine, theirs) <= MOST_SQUEEZED * min(mine, theirs):
        limits = [*left.get_ylim(), *right.get_ylim()]
        for axes in (left, right):
            axes.set_ylim(min(limits), max(limits))
    else:
        right.set_ylabel("Not the scale of the left panel (%)", color=VERMILION)


def _panel(
    axes: Axes, changes: Mapping[str, Mapping[str, float]], colour: str, names: Sequence[str]
) -> None:
    if not any(changes.values()):
        placeholder(axes, "no Dense and Dense-FT scores")
        return
    axes.axhline(0, color=GREY, linewidth=0.8, linestyle=(0, (4, 3)))
    for position, values in enumerate(changes.values()):
        ordered = [values[name] for name in names if name in values]
        if len(set(ordered)) > 2:  # a kernel density of fewer points is singular
            parts = axes.violinplot([ordered], positions=[position], widths=0.8, showextrema=False)
            for body in parts["bodies"]:
                body.set(facecolor=colour, alpha=0.3, edgecolor=colour, linewidth=0.8)
        if ordered:
            axes.plot(position + _spread(ordered), ordered, "o", color=colour, markersize=3)
            median = float(numpy.median(ordered))
            axes.plot([position - 0.16, position + 0.16], [median] * 2, color=INK, linewidth=2)
            _name_extremes(axes, position, values)
    counts = [f"{MODE_LABELS[mode]}\n(n = {len(values)})" for mode, values in changes.items()]
    axes.set_xticks(range(len(changes)), counts)
    axes.set_xlim(-0.6, len(changes) - 0.3)
    axes.grid(axis="y")


def _spread(values: Sequence[float]) -> numpy.ndarray:
    """Return small horizontal offsets by rank, so that neighbours do not hide each other."""
    ranks = numpy.argsort(numpy.argsort(values, kind="stable"), kind="stable")
    return numpy.array([-0.07, 0.0, 0.07])[ranks % 3]


def _name_extremes(axes: Axes, position: int, values: Mapping[str, float]) -> None:
    """Write the names of the lowest and the highest benchmark beside their dots."""
    for name in {min(values, key=values.__getitem__), max(values, key=values.__getitem__)}:
        axes.annotate(
            name,
            (position + 0.07, values[name]),
            xytext=(5, 0),
            textcoords="offset points",
            fontsize=6,
            va="center",
            path_effects=[withStroke(linewidth=2, foreground="white")],
        )
