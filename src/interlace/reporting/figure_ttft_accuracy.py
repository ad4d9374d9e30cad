"""What a speed-up costs: accuracy against TTFT, a point per variant of one model."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.text import Text
from matplotlib.transforms import Bbox

from interlace.evaluation.intervals import interval
from interlace.reporting.figures import (
    GREY,
    INK,
    SERIES,
    WIDE,
    mark_standin,
    placeholder,
    styled,
)
from interlace.reporting.labels import Variant, parse_variant
from interlace.reporting.notes import MODE_LABELS
from interlace.reporting.paper import Paper
from interlace.reporting.resamples import Resampler
from interlace.reporting.results import MODES, Results
from interlace.reporting.seeds import over_seeds
from interlace.reporting.timings import Timing, mean_interval

MARKERS = ("o", "s", "^", "D", "v", "P")
DENSE = Variant("dense", None, False)


@dataclass(frozen=True)
class Point:
    """A variant: its mean TTFT speed-up and mean score (0-100), with 95 % intervals if known."""

    variant: Variant
    speedup: float
    score: float
    speedup_interval: tuple[float, float] | None
    score_interval: tuple[float, float] | None
    count: int


def accuracy_mode(results: Results, model: str) -> str | None:
    """Return the mode to draw: the one with most of the model's timed variants, limited if alike."""
    counts = {
        mode: len({v for m, v, found in results.scores if (m, found) == (model, mode)})
        for mode in ("limited", *MODES)
    }
    best = max(counts, key=lambda mode: counts[mode])
    return best if counts[best] else None


def points(results: Results, model: str, mode: str, paper: Paper, seed: int = 0) -> list[Point]:
    """Return the model's variants that were scored in `mode` and timed; Dense needs no timing.

    Both means run over the benchmarks that a variant has both of; seeds are averaged. Fine-tuning
    changes no shape, so a variant may be timed in either form.
    """
    merged, resampler = over_seeds(results), Resampler(seed)
    found = []
    for (key, name, scored), scores in merged.scores.items():
        if (key, scored) != (model, mode):
            continue
        variant = parse_variant(name)
        timings = _timings(results, model, variant)
        names = [n for n in paper.names if n in scores and (variant == DENSE or n in timings)]
        if not names:
            continue
        resampled = [resampler.of_score(scores[name], name) for name in names]
        drawn = [each.scores for each in resampled if each is not None]
        whole = len(drawn) == len(names)
        shared = {name: timings[name] for name in names if name in timings}
        dense = variant == DENSE
        speedup = 1.0 if dense else float(np.mean([shared[n].speedup for n in names]))
        found.append(
            Point(
                variant,
                speedup,
                float(np.mean([scores[name].value for name in names])),
                None if dense else mean_interval(shared, seed),
                tuple(interval(np.mean(drawn, axis=0))) if whole else None,
                len(names),
            )
        )
    return sorted(found, key=lambda point: (point.variant.order[0], point.variant.id))


def _timings(results: Results, model: str, variant: Variant) -> Mapping[str, Timing]:
    either = (variant, Variant(variant.method, variant.ratio, not variant.tuned))
    return next((t for v in either if (t := results.timings.get((model, v.id)))), {})


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
    """Draw mean score against mean TTFT speed-up for all methods of `model`, each with its name."""
    figure, axes = plt.subplots(figsize=(WIDE, 3.9), layout="constrained")
    mode = accuracy_mode(results, model)
    found = points(results, model, mode, paper, seed) if mode else []
    if not found:
        placeholder(axes, "no variant was both scored and timed")
        mark_standin(figure, standin)
        return figure
    methods = list(dict.fromkeys(point.variant.method for point in found))
    for point in found:
        i = methods.index(point.variant.method)
        colour, marker = SERIES[i % len(SERIES)], MARKERS[(i // len(SERIES) + i) % len(MARKERS)]
        _draw(axes, point, colour, marker)
    axes.axvline(1, color=GREY, linewidth=0.8, linestyle=(0, (4, 3)), zorder=0)
    axes.set_xlabel("Mean TTFT speed-up (×)")
    axes.set_ylabel("Mean score (0-100)")
    axes.grid()
    axes.margins(0.12)
    counts = sorted({point.count for point in found})
    benchmarks = "-".join(dict.fromkeys((str(counts[0]), str(counts[-1]))))
    axes.set_title(f"{label}: accuracy against speed, {MODE_LABELS[mode]}, {benchmarks} benchmarks")
    style = {"marker": "o", "linestyle": "", "color": INK}
    handles = [
        Line2D([], [], label="fine-tuned", **style),
        Line2D([], [], label="not fine-tuned", markerfacecolor="white", **style),
        Line2D([], [], color=INK, linewidth=0.8, label="95 % interval"),
    ]
    figure.legend(handles=handles, loc="outside upper right", ncols=len(handles))
    mark_standin(figure, standin)
    figure.draw_without_rendering()
    _write_labels(figure, axes, found)
    return figure


def _draw(axes: Axes, point: Point, colour: str, marker: str) -> None:
    style = {"color": colour, "linewidth": 0.8, "alpha": 0.7}
    if point.speedup_interval:
        axes.plot(point.speedup_interval, [point.score] * 2, **style)
    if point.score_interval:
        axes.plot([point.speedup] * 2, point.score_interval, **style)
    filled = {} if point.variant.tuned else {"markerfacecolor": "white"}
    axes.plot([point.speedup], [point.score], marker, color=colour, markersize=5, **filled)


def name(variant: Variant) -> str:
    """Return the label of a point."""
    return variant.label if variant.ratio is None else f"{variant.label} {variant.ratio:g} %"


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
                name(point.variant),
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
