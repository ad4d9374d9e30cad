"""Figure 4: similarity of hidden states over depth."""

from collections.abc import Mapping, Sequence
from typing import Any

import matplotlib.pyplot as plt
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from interlace.errors import InputError
from interlace.reporting.figures import SERIES, layer_axis, mark_standin, styled

MARKERS = ("o", "s", "^", "D")


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
        imported = any(body.get("num_tokens", True) is None for body in bodies)
        axes.set_title(f"{label}, mean over samples" if imported else label)
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
    """Return starts and means by start: over tokens, or samples where imported scores have no other.

    A window without a score (imported ones leave out those that hold the last layer) is no point.
    """
    known = pack.get("num_tokens", True) is not None
    key = "token_mean" if known else "sample_mean"
    windows = sorted(pack["windows"], key=lambda window: window["start"])
    scored = [window for window in windows if window[key] is not None]
    return [window["start"] for window in scored], [window[key] for window in scored]
