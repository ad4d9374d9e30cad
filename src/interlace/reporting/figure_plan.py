"""Figure 2: what a plan does with each layer over depth, and the scores it went by."""

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Patch, Rectangle

from interlace.reporting.figures import (
    BLUE,
    GREEN,
    GREY,
    INK,
    LIGHT,
    ORANGE,
    PURPLE,
    SKY,
    VERMILION,
    WIDE,
    layer_axis,
    mark_standin,
    styled,
)
from interlace.reporting.labels import method_label

if TYPE_CHECKING:
    from interlace.selection.plan import LayerPlan

ROLES = {"drop": VERMILION, "tune": BLUE, "anchor": GREEN, "freeze": LIGHT}
ROLE_LABELS = {
    "drop": "dropped",
    "tune": "fine-tuned",
    "anchor": "frozen anchor of a triplet",
    "freeze": "frozen",
}
STYLES = {1: (GREY, "o"), 2: (SKY, "^"), 3: (INK, "s")}
FENCE = 4.0
"""How many interquartile ranges off its quartiles a value may lie and still stand in the plot."""


@styled
def draw_plan(plan: "LayerPlan", label: str, standin: Sequence[str] = ()) -> Figure:
    """Draw the plan's roles over depth and above them the scores that it went by, if any.

    A window of several layers stands at its middle. Windows taken, or dropped layers where the
    method takes single ones, are shaded and carry the order in which they were taken. A few values
    far off the rest would flatten everything else: they stand at the edge with their number.
    """
    title = _title(plan, label)
    if plan.measures:
        figure, (top, strip) = plt.subplots(
            2, 1, figsize=(WIDE, 3.1), height_ratios=(5, 1), sharex=True, layout="constrained"
        )
        for measure in plan.measures:
            _plot_measure(top, measure)
        _set_range(top, plan.measures)
        _plot_taken(top, plan)
        unit = plan.measures[0]["unit"]
        top.set_ylabel(unit[0].upper() + unit[1:])
        top.grid(axis="y")
        top.legend(loc="upper center", bbox_to_anchor=(0.5, -0.02), ncols=len(plan.measures) + 1)
        top.set_title(title, pad=11 if plan.order else None)
    else:
        figure, strip = plt.subplots(figsize=(WIDE, 1.35), layout="constrained")
        strip.set_title(title)
    _plot_roles(strip, plan.roles())
    layer_axis(strip, plan.num_layers)
    mark_standin(figure, standin)
    return figure


def _title(plan: "LayerPlan", label: str) -> str:
    ratio = "" if plan.ratio is None else f" {plan.ratio:g} %"
    name = f"{label}: {method_label(plan.method)}{ratio}"
    if not plan.drop:
        return f"{name}, none of {plan.num_layers} layers dropped"
    return f"{name}, {len(plan.drop)} of {plan.num_layers} layers dropped"


def _points(measure: dict[str, Any]) -> tuple[np.ndarray, np.ndarray]:
    """Return the middles of a measure's windows and its values, NaN where there is none."""
    values = np.array([math.nan if v is None else v for v in measure["values"]], dtype=float)
    return np.arange(len(values)) + (measure["size"] - 1) / 2, values


def _plot_measure(axes: Axes, measure: dict[str, Any]) -> None:
    x, y = _points(measure)
    colour, marker = STYLES.get(measure["size"], (PURPLE, "D"))
    name = measure["name"] + (" (at its middle)" if measure["size"] > 1 else "")
    # A line between the few layers that have a value would say something about those between.
    line = "-" if 2 * np.isfinite(y).sum() > len(y) else ""
    axes.plot(x, y, color=colour, marker=marker, linestyle=line, label=name)


def _inliers(values: np.ndarray) -> np.ndarray:
    """Return the values within the fence; all of them if more than a sixth would be left out."""
    known = values[np.isfinite(values)]
    low, high = np.quantile(known, (0.25, 0.75))
    reach = FENCE * (high - low)
    inside = known[(known >= low - reach) & (known <= high + reach)]
    return inside if 6 * len(inside) >= 5 * len(known) else known


def _set_range(axes: Axes, measures: Sequence[dict[str, Any]]) -> None:
    """Fit the y axis to what lies within the fences; mark the rest at the edge with its number.

    A value that would not even double the axis is no reason to cut it.
    """
    values = np.concatenate([_points(measure)[1] for measure in measures])
    inside = np.concatenate([_inliers(_points(measure)[1]) for measure in measures])
    reach = inside.max() - inside.min()
    shown = values[(values >= inside.min() - reach) & (values <= inside.max() + reach)]
    low, high = float(shown.min()), float(shown.max())
    margin = 0.07 * (high - low) or 0.01 * (abs(high) or 1)
    axes.set_ylim(low - margin, high + margin)
    for measure in measures:
        colour = STYLES.get(measure["size"], (PURPLE, "D"))[0]
        for x, y in zip(*_points(measure), strict=True):
            if math.isfinite(y) and not low <= y <= high:
                _mark_outlier(axes, x, y, below=y < low, colour=colour)


def _mark_outlier(axes: Axes, x: float, y: float, below: bool, colour: str) -> None:
    edge = 0 if below else 1
    where = {"xycoords": ("data", "axes fraction"), "textcoords": "offset points"}
    axes.plot(
        x,
        edge,
        "v" if below else "^",
        color=colour,
        transform=axes.get_xaxis_transform(),
        clip_on=False,
    )
    axes.annotate(
        f"{y:.3g}",
        (x, edge),
        xytext=(0, 5 if below else -5),
        ha="center",
        va="bottom" if below else "top",
        rotation=90,
        fontsize=6,
        color=colour,
        **where,
    )


def _plot_taken(axes: Axes, plan: "LayerPlan") -> None:
    """Shade and number what was taken; mark triplets on their curve."""
    windows = [(entry["start"], entry["size"]) for entry in plan.triplets]
    numbers = dict(enumerate(windows, 1))
    if not windows:
        for layer in plan.drop:
            axes.axvspan(layer - 0.44, layer + 0.44, color=VERMILION, alpha=0.14, linewidth=0)
        numbers = {number: (layer, 1) for number, layer in enumerate(plan.order, 1)}
    for start, size in windows:
        axes.axvspan(start - 0.44, start + size - 0.56, color=ORANGE, alpha=0.18, linewidth=0)
    for number, (start, size) in numbers.items():
        axes.annotate(
            str(number),
            (start + (size - 1) / 2, 1),
            xycoords=("data", "axes fraction"),
            xytext=(0, 1.5),
            textcoords="offset points",
            ha="center",
            va="bottom",
            fontsize=6.5,
        )
    taken = {entry["start"] + 1: entry["score"] for entry in plan.triplets if entry["size"] == 3}
    if taken:
        style = {"color": ORANGE, "markeredgecolor": INK, "markersize": 4.6, "linestyle": ""}
        name = "triplet taken (number: order)"
        axes.plot(list(taken), list(taken.values()), marker="s", label=name, **style)


def _plot_roles(axes: Axes, roles: Sequence[str]) -> None:
    for layer, role in enumerate(roles):
        axes.add_patch(
            Rectangle((layer - 0.44, 0), 0.88, 1, facecolor=ROLES[role], edgecolor="none")
        )
        if role != "freeze":
            letter = {"drop": "D", "tune": "T", "anchor": "A"}[role]
            axes.text(layer, 0.48, letter, ha="center", va="center", fontsize=6, color="white")
    axes.set_ylim(0, 1)
    axes.set_yticks([])
    axes.set_ylabel("Role", rotation=0, ha="right", va="center")
    for side in ("left", "bottom"):
        axes.spines[side].set_visible(False)
    handles = [Patch(color=ROLES[r], label=ROLE_LABELS[r]) for r in ROLES if r in roles]
    axes.figure.legend(handles=handles, loc="outside upper right", ncols=len(handles))
