"""What a speed-up costs: accuracy against TTFT, a point per variant of one model."""

import textwrap
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.text import Text
from matplotlib.transforms import Bbox

from interlace.reporting import averages
from interlace.reporting.estimates import combine
from interlace.reporting.figures import (
    GREY,
    INK,
    MARKERS,
    SERIES,
    WIDE,
    mark_standin,
    placeholder,
    styled,
)
from interlace.reporting.labels import MODE_LABELS, Variant, parse_variant
from interlace.reporting.paper import Paper
from interlace.reporting.resamples import Resampler
from interlace.reporting.results import Results
from interlace.reporting.seeds import over_seeds
from interlace.reporting.sources import DENSE, Sources
from interlace.reporting.timings import mean_interval


@dataclass(frozen=True)
class Point:
    """A variant: its mean TTFT speed-up and mean score (0-100), with 95 % intervals if known.

    `partial`: a score is of part of a benchmark.
    """

    variant: Variant
    speedup: float
    score: float
    speedup_interval: tuple[float, float] | None
    score_interval: tuple[float, float] | None
    partial: bool


@dataclass(frozen=True)
class Panel:
    """What is drawn of a mode: points, the benchmarks that all of them are means over, remarks."""

    mode: str
    points: list[Point]
    names: list[str]
    remarks: list[str]


def panels_of(results: Results, model: str, paper: Paper, seed: int = 0) -> list[Panel]:
    """Return a panel for each mode, limited first, that a timed variant was scored in."""
    sources = Sources(over_seeds(results), paper, {}, {}, Resampler(seed))
    found = [_panel(sources, model, mode) for mode in ("limited", "cot")]
    return [panel for panel in found if any(p.variant != DENSE for p in panel.points)]


def _panel(sources: Sources, model: str, mode: str) -> Panel:
    """Return the model's variants that were scored in `mode` and timed; Dense needs no timing.

    All means run over the same benchmarks; seeds are averaged. Fine-tuning changes no shape, so a
    variant may be timed in either form.
    """
    scores = {
        variant: sources.scores(variant, mode, model)
        for key, name, scored in sources.results.scores
        if (key, scored) == (model, mode)
        for variant in [parse_variant(name)]
    }
    timings = {variant: sources.timings(model, variant) for variant in scores}
    paper, seed = sources.paper, sources.resampler.seed
    both = {
        variant: {n for n in found if variant == DENSE or n in timings[variant]}
        for variant, found in scores.items()
    }
    chosen, shared = _common({variant: names for variant, names in both.items() if names})
    names = [name for name in paper.names if name in shared]
    points = []
    for variant in sorted(chosen, key=lambda v: (v.order[0], v.id)):
        score, _ = combine(lambda own, _: averages.average(own, names), names, scores[variant])
        assert score is not None  # `names` are benchmarks that all of `chosen` have
        low, high = score.interval
        timed = {name: timings[variant][name] for name in names if variant != DENSE}
        points.append(
            Point(
                variant,
                float(np.mean([t.speedup for t in timed.values()])) if timed else 1.0,
                score.value,
                mean_interval(timed, seed),
                None if low is None or high is None else (low, high),
                score.partial,
            )
        )
    others = set().union(*both.values()) - shared if chosen else set()
    remarks = _remarks(
        [variant for variant, found in both.items() if found and variant not in chosen],
        [name for name in paper.names if name in others],
        any(point.partial for point in points),
    )
    return Panel(mode, points, names, remarks)


def _common(both: Mapping[Variant, set[str]]) -> tuple[list[Variant], set[str]]:
    """Return variants that share benchmarks, and those.

    From the variant with most benchmarks on, as long as at least half of those are shared by all.
    """
    order = sorted(both, key=lambda v: (-len(both[v]), v != DENSE, v.order, v.id))
    chosen: list[Variant] = []
    shared: set[str] = set()
    for variant in order:
        left = both[variant] & shared if chosen else both[variant]
        if 2 * len(left) >= len(both[order[0]]):
            chosen.append(variant)
            shared = left
    return chosen, shared


def _remarks(variants: Sequence[Variant], names: Sequence[str], partial: bool) -> list[str]:
    remarks = []
    if partial:
        remarks.append("† from part of a benchmark (evaluation.limit)")
    if variants:
        remarks.append(
            f"left out, on too few benchmarks: {', '.join(v.full_label for v in variants)}"
        )
    if names:
        remarks.append(f"benchmarks that not all have: {', '.join(names)}")
    return remarks


@styled
def draw_accuracy(
    results: Results,
    model: str,
    paper: Paper,
    label: str,
    standin: Sequence[str] = (),
    *,
    seed: int = 0,
) -> Figure:
    """Draw mean score against mean TTFT speed-up for all methods of `model`, each with its name.

    A panel per mode.
    """
    shown = panels_of(results, model, paper, seed)
    count = max(1, len(shown))
    figure, grid = plt.subplots(
        count, 1, figsize=(WIDE, 0.6 + 3.3 * count), squeeze=False, layout="constrained"
    )
    if not shown:
        placeholder(grid[0, 0], "no variant was both scored and timed")
        mark_standin(figure, standin)
        return figure
    methods = list(dict.fromkeys(p.variant.method for panel in shown for p in panel.points))
    for axes, panel in zip(grid[:, 0], shown, strict=True):
        for point in panel.points:
            i = methods.index(point.variant.method)
            _draw(axes, point, SERIES[i % len(SERIES)], MARKERS[(i // 6 + i) % len(MARKERS)])
        axes.axvline(1, color=GREY, linewidth=0.8, linestyle=(0, (4, 3)), zorder=0)
        axes.set_xlabel("\n".join(["Mean TTFT speed-up (×)", *map(_wrapped, panel.remarks)]))
        axes.set_ylabel("Mean score (0-100)")
        axes.grid()
        axes.margins(0.12)
        plural = "benchmark" if len(panel.names) == 1 else "benchmarks"
        title = f"{label}: accuracy against speed, {MODE_LABELS[panel.mode]}"
        axes.set_title(f"{title}, {len(panel.names)} {plural}")
    style = {"marker": "o", "linestyle": "", "color": INK}
    handles = [
        Line2D([], [], label="fine-tuned", **style),
        Line2D([], [], label="not fine-tuned", markerfacecolor="white", **style),
        Line2D([], [], color=INK, linewidth=0.8, label="95 % interval"),
    ]
    figure.legend(handles=handles, loc="outside upper right", ncols=len(handles))
    mark_standin(figure, standin)
    figure.draw_without_rendering()
    for axes, panel in zip(grid[:, 0], shown, strict=True):
        _write_labels(figure, axes, panel.points)
    return figure


def _wrapped(text: str) -> str:
    return textwrap.fill(text, 100)


def _draw(axes: Axes, point: Point, colour: str, marker: str) -> None:
    style = {"color": colour, "linewidth": 0.8, "alpha": 0.7}
    if point.speedup_interval:
        axes.plot(point.speedup_interval, [point.score] * 2, **style)
    if point.score_interval:
        axes.plot([point.speedup] * 2, point.score_interval, **style)
    filled = {} if point.variant.tuned else {"markerfacecolor": "white"}
    axes.plot([point.speedup], [point.score], marker, color=colour, markersize=5, **filled)


# Where a label may stand around its point: horizontal and vertical side, and how far off.
_PLACES = [
    (h, v, distance)
    for distance in (6, 14, 24, 36, 50)
    for h, v in ((1, 1), (1, -1), (-1, 1), (-1, -1), (0, 1), (0, -1))
]


def _write_labels(figure: Figure, axes: Axes, found: Sequence[Point]) -> None:
    """Write each point's name where it covers least: no other name, no marker, no interval."""
    renderer = figure.canvas.get_renderer()
    frame = axes.get_window_extent(renderer)
    centres = [axes.transData.transform((p.speedup, p.score)) for p in found]
    taken = [Bbox.from_bounds(x - 5, y - 5, 10, 10) for x, y in centres]
    for point in found:
        taken += [
            Bbox([axes.transData.transform(end) for end in ends]) for ends in _intervals(point)
        ]
    for point in found:
        best = None
        for h, v, distance in _PLACES:
            text = axes.annotate(
                point.variant.full_label + "†" * point.partial,
                (point.speedup, point.score),
                xytext=(h * distance * 0.7, v * distance * 0.7),
                textcoords="offset points",
                ha={1: "left", -1: "right", 0: "center"}[h],
                va={1: "bottom", -1: "top"}[v],
                fontsize=6.5,
                color=INK,
                in_layout=False,
                arrowprops={"arrowstyle": "-", "color": GREY, "linewidth": 0.5, "shrinkB": 3},
            )
            # An annotation's own extent would have the line to its point in it.
            text.update_positions(renderer)
            box = Text.get_window_extent(text, renderer).expanded(1.02, 1.1)
            covered = sum(_overlap(box, other) for other in taken)
            outside = box.width * box.height - _overlap(box, frame)
            cost = covered + 10 * outside + 0.05 * distance
            if best is None or cost < best[0]:
                if best is not None:
                    best[1].remove()
                best = (cost, text, box)
            else:
                text.remove()
            if best[0] < 1:
                break
        assert best is not None
        taken.append(best[2])


def _intervals(point: Point) -> list[list[tuple[float, float]]]:
    lines = []
    if point.speedup_interval:
        lines.append([(x, point.score) for x in point.speedup_interval])
    if point.score_interval:
        lines.append([(point.speedup, y) for y in point.score_interval])
    return lines


def _overlap(a: Bbox, b: Bbox) -> float:
    """Return the area that two boxes share, lines counted as two pixels wide."""
    width = min(a.x1, b.x1 + 1) - max(a.x0, b.x0 - 1)
    height = min(a.y1, b.y1 + 1) - max(a.y0, b.y0 - 1)
    return max(0.0, width) * max(0.0, height)
