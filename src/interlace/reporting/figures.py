"""What all figures share: style, palette, the stand-in mark, files that are the same every time."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import ParamSpec, TypeVar

import matplotlib

matplotlib.use("Agg")

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from interlace.io import atomic_path
from interlace.reporting import standin

# Okabe and Ito's palette, which the colour-blind can tell apart.
BLUE, ORANGE, GREEN, VERMILION = "#0072B2", "#E69F00", "#009E73", "#D55E00"
PURPLE, SKY, GREY, INK = "#CC79A7", "#56B4E9", "#8C96A0", "#1B1F24"
LIGHT = "#E3E7EB"
SERIES = (BLUE, ORANGE, GREEN, PURPLE, VERMILION, SKY)
MARKERS = ("o", "s", "^", "D", "v", "P")

STYLE = {
    "font.family": "sans-serif",
    "font.sans-serif": ["DejaVu Sans"],
    "font.size": 8,
    "axes.titlesize": 8.5,
    "axes.titleweight": "bold",
    "axes.titlelocation": "left",
    "axes.labelsize": 8,
    "axes.edgecolor": INK,
    "axes.linewidth": 0.6,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.axisbelow": True,
    "xtick.labelsize": 7,
    "ytick.labelsize": 7,
    "xtick.major.width": 0.6,
    "ytick.major.width": 0.6,
    "xtick.major.size": 2.5,
    "ytick.major.size": 2.5,
    "legend.fontsize": 7,
    "legend.frameon": False,
    "legend.handlelength": 1.4,
    "lines.linewidth": 1.3,
    "lines.markersize": 3.2,
    "grid.color": LIGHT,
    "grid.linewidth": 0.6,
    "figure.constrained_layout.use": True,
    "savefig.dpi": 200,
    "pdf.fonttype": 42,
    "svg.fonttype": "path",
    "svg.hashsalt": "interlace",
}
MANY = 2000
"""Points above which they are drawn as pixels, so that a page of them stays light."""
P = ParamSpec("P")
R = TypeVar("R")
WIDE = 7.0
"""Inches: the width of a two-column page's text."""
NARROW = 3.4
"""Inches: the width of one column."""


def styled(function: Callable[P, R]) -> Callable[P, R]:
    """Decorate a drawing function to run under the style of all figures."""
    return plt.rc_context(STYLE)(function)


def layer_axis(axes: Axes, num_layers: int) -> None:
    """Label the x axis with decoder layers, 0-based as in every file."""
    axes.set_xlim(-0.7, num_layers - 0.3)
    axes.xaxis.set_major_locator(MaxNLocator(nbins=10, integer=True))
    axes.set_xlabel("Decoder layer (0-based)")


def mark_standin(figure: Figure, reasons: Sequence[str]) -> None:
    """Say below the plot that it shows stand-ins, and why; nothing if it does not."""
    if reasons:
        text = standin.remark(reasons).capitalize()
        figure.supxlabel(text, x=0.995, ha="right", fontsize=6.5, color=VERMILION, style="italic")


def placeholder(axes: Axes, text: str) -> None:
    """Say in empty axes why they are empty."""
    axes.text(0.5, 0.5, text, transform=axes.transAxes, ha="center", va="center", color=GREY)
    axes.set_xticks([])
    axes.set_yticks([])


def write_figure(figure: Figure, stem: Path) -> list[Path]:
    """Write `stem`.svg, .pdf and .png without dates, the same bytes every time; close the figure."""
    metadata = {
        "svg": {"Date": None, "Creator": None},
        "pdf": {"CreationDate": None, "Creator": None, "Producer": None},
        "png": {"Software": None},
    }
    paths = []
    with plt.rc_context(STYLE):
        _freeze_layout(figure)
        for extension, fields in metadata.items():
            path = stem.with_name(f"{stem.name}.{extension}")
            with atomic_path(path) as partial:
                figure.savefig(partial, format=extension, metadata=fields)
            paths.append(path)
    plt.close(figure)
    return paths


def _freeze_layout(figure: Figure) -> None:
    """Lay the figure out once and round where its axes lie.

    The solver of the constrained layout orders its variables by their addresses: its last bits
    differ from run to run, and matplotlib names the clip paths of an SVG by them.
    """
    figure.draw_without_rendering()
    figure.set_layout_engine("none")
    for axes in figure.axes:
        axes.set_position(np.round(axes.get_position(original=True).bounds, 6))
