"""Figures 2 and 4: similarity of hidden states over depth, and what a plan makes of it."""

from collections.abc import Mapping, Sequence
from typing import Any

import matplotlib.pyplot as plt
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Patch, Rectangle
from matplotlib.ticker import MaxNLocator

from interlace.errors import InputError
from interlace.reporting.figures import (
    BLUE,
    GREEN,
    GREY,
    INK,
    LIGHT,
    ORANGE,
    SERIES,
    VERMILION,
    WIDE,
    layer_axis,
    mark_standin,
    styled,
)
from interlace.reporting.labels import method_label

ROLES = {"drop": VERMILION, "tune": BLUE, "anchor": GREEN, "freeze": LIGHT}
ROLE_LABELS = {
    "drop": "dropped",
    "tune": "fine-tuned",
    "anchor": "frozen anchor of a triplet",
    "freeze": "frozen",
}
MARKERS = ("o", "s", "^", "D")


def layer_roles(plan: Mapping[str, Any]) -> list[str]:
    """Return the role of each layer: drop, tune, anchor (frozen third of a triplet) or freeze."""
    roles = ["freeze"] * plan["num_layers"]
    for triplet in plan.get("triplets", ()):
        if triplet.get("anchor") is not None:
            roles[triplet["anchor"]] = "anchor"
    for role in ("tune", "drop"):
        for layer in plan[role]:
            roles[layer] = role
    return roles


@styled
def draw_figure2(
    plan: Mapping[str, Any],
    pack1: Mapping[str, Any],
    pack3: Mapping[str, Any],
    label: str,
    standin: Sequence[str] = (),
) -> Figure:
    """Draw similarity of layers and triplets over depth with the plan's roles beneath.

    `plan`, `pack1`, `pack3` are the bodies of those files; they must be of the same depth. A
    triplet's similarity stands above its middle layer; the chosen ones carry the order in which
    they were taken.
    """
    depths = {plan["num_layers"], pack1["num_layers"], pack3["num_layers"]}
    if len(depths) != 1:
        raise InputError(f"{label}: plan and scores have {sorted(depths)} layers; score again")
    num_layers = plan["num_layers"]
    figure, (top, strip) = plt.subplots(
        2, 1, figsize=(WIDE, 3.1), height_ratios=(5, 1), sharex=True, layout="constrained"
    )
    ratio = f" {plan['ratio']:g} %" if plan.get("ratio") is not None else ""
    name = f"{method_label(plan['method'])}{ratio}"
    top.set_title(f"{label}: {name}, {len(plan['drop'])} of {num_layers} layers dropped")
    _plot_windows(top, pack1, "layer", GREY, "o", offset=0)
    _plot_windows(top, pack3, "triplet (at its middle layer)", INK, "s", offset=1)
    _plot_chosen(top, plan, pack3)
    top.set_ylabel("Cosine similarity")
    top.grid(axis="y")
    top.legend(loc="upper center", bbox_to_anchor=(0.5, -0.02), ncols=3)
    _plot_roles(strip, layer_roles(plan))
    layer_axis(strip, num_layers)
    mark_standin(figure, standin)
    return figure


def _plot_windows(
    axes: Axes, pack: Mapping[str, Any], label: str, colour: str, marker: str, offset: float
) -> None:
    starts, means = _windows(pack)
    axes.plot([s + offset for s in starts], means, color=colour, marker=marker, label=label)


def _plot_chosen(axes: Axes, plan: Mapping[str, Any], pack3: Mapping[str, Any]) -> None:
    """Shade and number the windows in the order taken; mark those of three layers on their curve."""
    similarity = dict(zip(*_windows(pack3), strict=True))
    chosen = [(entry["start"], entry.get("size", 3)) for entry in plan.get("triplets", ())]
    for order, (start, size) in enumerate(chosen, start=1):
        axes.axvspan(start - 0.44, start + size - 0.56, color=ORANGE, alpha=0.18, linewidth=0)
        axes.annotate(
            str(order),
            (start + (size - 1) / 2, 1),
            xycoords=("data", "axes fraction"),
            xytext=(0, -1),
            textcoords="offset points",
            ha="center",
            va="top",
            fontsize=6.5,
        )
    starts = [start for start, size in chosen if size == 3 and start in similarity]
    if starts:
        style = {"color": ORANGE, "markeredgecolor": INK, "markersize": 4.6, "linestyle": ""}
        middles, means = [s + 1 for s in starts], [similarity[s] for s in starts]
        axes.plot(middles, means, marker="s", label="triplet taken (number: order)", **style)
    if chosen:
        low, high = axes.get_ylim()
        axes.set_ylim(low, high + 0.1 * (high - low))


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


@styled
def draw_figure4(
    packs: Mapping[str, Sequence[Mapping[str, Any]]], standin: Sequence[str] = ()
) -> Figure:
    """Draw the similarity of windows of each size over depth, a panel per model.

    `packs` maps a model's label to the bodies of its pack files.
    """
    if not packs:
        raise InputError("figure 4: no model has similarity scores")
    figure, panels = plt.subplots(
        1,
        len(packs),
        figsize=(max(3.6, 3.5 * len(packs)), 2.7),
        sharey=True,
        squeeze=False,
        layout="constrained",
    )
    for axes, (label, bodies) in zip(panels[0], packs.items(), strict=True):
        for i, pack in enumerate(sorted(bodies, key=lambda body: body["size"])):
            starts, means = _windows(pack)
            size = pack["size"]
            name = "1 layer" if size == 1 else f"{size} layers"
            style = {"color": SERIES[i % len(SERIES)], "marker": MARKERS[i % len(MARKERS)]}
            axes.plot(starts, means, label=name, **style)
        axes.set_title(label)
        axes.grid(axis="y")
        layer_axis(axes, bodies[0]["num_layers"])
        axes.set_xlabel("First layer of the window (0-based)")
        axes.yaxis.set_major_locator(MaxNLocator(nbins=6, steps=[1, 2, 5, 10]))
    panels[0][0].set_ylabel("Cosine similarity")
    handles, labels = panels[0][0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside upper right", ncols=len(handles))
    mark_standin(figure, standin)
    return figure


def _windows(pack: Mapping[str, Any]) -> tuple[list[int], list[float]]:
    """Return the starts and token means of a pack, by start."""
    windows = sorted(pack["windows"], key=lambda window: window["start"])
    return [w["start"] for w in windows], [w["token_mean"] for w in windows]
