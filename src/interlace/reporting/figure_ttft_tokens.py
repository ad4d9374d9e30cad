"""The TTFT figure that explains the others: a sample's time against its visual tokens."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

from interlace.errors import InputError
from interlace.reporting.figure_ttft import largest, model_panels, pair_title
from interlace.reporting.figures import BLUE, INK, MANY, ORANGE, mark_standin, placeholder, styled
from interlace.reporting.paper import Paper
from interlace.reporting.results import Results
from interlace.reporting.timings import Timing

COLOURS = {"dense": BLUE, "pruned": ORANGE}
MARKERS = {"dense": "o", "pruned": "^"}


@styled
def draw_tokens(
    results: Results,
    models: Mapping[str, Mapping[str, Any]],
    paper: Paper,
    method: str,
    standin: Sequence[str] = (),
) -> Figure:
    """Draw every sample's TTFT against its visual tokens, dense and pruned, over their rooflines.

    Samples of all benchmarks of the paper together; pruned is the largest ratio of `method` that
    was timed; a panel per model. Texts differ in length, and so do rooflines at a number of visual
    tokens: the line is the lowest of all samples with as many or more. InputError names a file whose
    samples have no number of tokens.
    """
    chosen = largest(results, models, method)
    figure, panels = model_panels(len(chosen), height=2.5)
    if not chosen:
        placeholder(panels[0], "no TTFT measured")
    bounded = False
    for axes, (model, variant) in zip(panels, chosen.items(), strict=False):
        timings = results.timings[model, variant.id]
        bounded |= _panel(axes, [timings[name] for name in paper.names if name in timings])
        axes.set_title(pair_title(model, variant, models))
        axes.set_ylabel("TTFT (ms)")
    if chosen:
        panels[-1].set_xlabel("Visual tokens of the sample")
    handles = [
        Line2D([], [], linestyle="", marker=MARKERS[side], color=COLOURS[side], label=label)
        for side, label in (("dense", "Dense"), ("pruned", "pruned"))
    ]
    if bounded:
        handles.append(Line2D([], [], color=INK, label="roofline: the least time possible"))
    figure.legend(handles=handles, loc="outside upper right", ncols=len(handles))
    mark_standin(figure, standin)
    return figure


def _panel(axes: Axes, timings: Sequence[Timing]) -> bool:
    """Draw the samples of one model; return whether there was a roofline to draw."""
    timings = [timing for timing in timings if timing.samples]
    if not timings:
        placeholder(axes, "no samples in the files")
        return False
    for timing in timings:
        unknown = np.flatnonzero(np.isnan(timing.samples["visual_tokens"]))
        if len(unknown):
            raise InputError(
                f"{timing.file}: samples[{unknown[0]}] has no visual_tokens; delete the file and run "
                "its stage again"
            )
    bounded = False
    tokens = _together(timings, "visual_tokens")
    if (tokens == 0).any():
        axes.set_xscale("symlog", linthresh=1)
    else:
        axes.set_xscale("log")
        axes.xaxis.set_major_locator(LogLocator(base=2, numticks=12))
        axes.xaxis.set_minor_locator(LogLocator(base=2, numticks=12))
    axes.set_yscale("log")
    for side in ("dense", "pruned"):
        times = 1000 * _together(timings, f"{side}_s")
        style = {"color": COLOURS[side], "alpha": 0.55, "markeredgewidth": 0}
        axes.plot(tokens, times, MARKERS[side], rasterized=len(tokens) > MANY, **style)
        least = 1000 * _together(timings, f"{side}_roofline_s")
        if not np.isnan(least).any():
            bounded = True
            axes.plot(*_lowest(tokens, least), color=COLOURS[side], linewidth=1.0)
    axes.grid(which="major")
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axes.xaxis.set_minor_formatter(NullFormatter())
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axes.yaxis.set_minor_formatter(NullFormatter())
    low, high = axes.get_ylim()
    if high / low < 30:  # less than a decade and a half: a few more ticks
        axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5), numticks=12))
    return bounded


def _together(timings: Sequence[Timing], key: str) -> np.ndarray:
    """Return a column of the samples of all files."""
    return np.concatenate([timing.samples[key] for timing in timings])


def _lowest(tokens: np.ndarray, least: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return each number of tokens once, and the lowest of all samples with as many or more."""
    order = np.argsort(tokens, kind="stable")
    lowest = np.minimum.accumulate(least[order][::-1])[::-1]
    distinct, first = np.unique(tokens[order], return_index=True)
    return distinct, lowest[first]
