"""The curves of fine-tuning: loss, learning rate, gradient norm and speed, step by step."""

import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, MaxNLocator, NullFormatter, StrMethodFormatter

from interlace.errors import InputError
from interlace.reporting.figures import (
    BLUE,
    GREEN,
    MANY,
    ORANGE,
    PURPLE,
    SERIES,
    VERMILION,
    WIDE,
    mark_standin,
    placeholder,
    styled,
    write_figure,
)
from interlace.reporting.labels import parse_variant

LOG = "training.jsonl"
SMOOTHED = 50
"""A smoothed curve is the mean over a window of one in so many of the steps."""
DRAWN = 500
"""Points that a smoothed curve is drawn by at most."""
WIDE_RANGE = 5.0
"""Ratio of the smoothed loss's ends above which its axis is logarithmic."""
LINE_STYLES = ("-", (0, (4, 1.5)), (0, (1, 1)))

Steps = Sequence[Mapping[str, Any]]


def build_training_figure(
    checkpoint: Path, stem: Path, *, model: str, variant: str, standin: Sequence[str]
) -> None:
    """Write the curves of one fine-tuned checkpoint as `stem`.svg, .pdf and .png.

    `model` is the model's label.
    """
    title = f"{model}: {parse_variant(variant).full_label}"
    write_figure(draw_training(read_steps(checkpoint / LOG), title, standin), stem)


def build_overview(
    checkpoints: Mapping[str, Mapping[str, Path]], stem: Path, *, standin: Sequence[str]
) -> None:
    """Write the smoothed losses of several as `stem`.svg, .pdf and .png.

    `checkpoints` maps a model's label to its fine-tuned checkpoints by variant.
    """
    steps = {
        model: {variant: read_steps(folder / LOG) for variant, folder in folders.items()}
        for model, folders in checkpoints.items()
    }
    write_figure(draw_overview(steps, standin), stem)


def read_steps(path: Path) -> list[dict[str, Any]]:
    """Return the lines of a training.jsonl by step; a step that was logged twice counts last.

    InputError names a line that is no JSON object with a step, or a file without any.
    """
    steps: dict[int, dict[str, Any]] = {}
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise InputError(f"{path}: no such file; delete the checkpoint and tune it again") from None
    for number, line in enumerate(text.splitlines(), start=1):
        try:
            entry = json.loads(line)
            steps[int(entry["step"])] = entry
        except (json.JSONDecodeError, KeyError, TypeError, ValueError):
            raise InputError(
                f"{path}: line {number} is not the record of a step; delete the checkpoint and tune"
                " it again"
            ) from None
    if not steps:
        raise InputError(f"{path}: no step in it; delete the checkpoint and tune it again")
    return [steps[step] for step in sorted(steps)]


def column(steps: Steps, key: str) -> np.ndarray | None:
    """Return the numbers of a key by step, NaN where one is missing; None if all are."""
    values = [entry.get(key) for entry in steps]
    numbers = np.array([math.nan if value is None else float(value) for value in values])
    numbers[~np.isfinite(numbers)] = math.nan
    return None if np.isnan(numbers).all() else numbers


def smooth(values: np.ndarray, window: int) -> np.ndarray:
    """Return the mean over `window` (odd) steps around each; NaNs do not count.

    At the start the window narrows on both sides, so that it stays around its step and a steep
    descent is not flattened; at the end it looks back, so that the last steps do not stand out.
    """
    if window == 1:
        return values.copy()
    means = np.full(len(values), math.nan)
    for i in range(len(values)):
        back = min(i, window // 2)
        near = values[i - back : i + back + 1]
        near = near[~np.isnan(near)]
        if len(near):
            means[i] = near.mean()
    return means


def window_of(num_steps: int) -> int:
    """Return the odd number of steps that a curve of so many is smoothed over."""
    return 2 * (num_steps // SMOOTHED // 2) + 1 if num_steps >= SMOOTHED else 1


@styled
def draw_training(steps: Steps, title: str, standin: Sequence[str] = ()) -> Figure:
    """Draw the curves of one run over its optimizer steps, a panel each.

    Noisy ones are light, their mean over neighbouring steps (one in `SMOOTHED` of all) is dark.
    Speeds are shown where they were logged.
    """
    x = np.array([entry["step"] for entry in steps])
    window = window_of(len(x))
    panels = [
        ("Learning rate", {"": ("learning_rate", PURPLE)}, 1),
        ("Gradient norm", {"": ("grad_norm", GREEN)}, window),
    ]
    speeds = {"all": ("tokens_per_s", ORANGE), "supervised": ("supervised_tokens_per_s", VERMILION)}
    speeds = {name: kind for name, kind in speeds.items() if column(steps, kind[0]) is not None}
    if speeds:
        panels.append(("Tokens/s", speeds, window))
    figure, axes = plt.subplots(
        1 + len(panels),
        1,
        figsize=(WIDE, 2.3 + 1.05 * len(panels)),
        height_ratios=(2.4, *[1] * len(panels)),
        sharex=True,
        layout="constrained",
    )
    losses = column(steps, "loss")
    axes[0].set_title(_title(title, x, losses))
    axes[0].set_ylabel("Loss")
    if losses is None:
        placeholder(axes[0], "no finite loss")
    else:
        _curve(axes[0], x, losses, BLUE, window)
        _loss_axis(axes[0], smooth(losses, window), losses)
        if window > 1:
            axes[0].legend(["each step", f"mean over {window} steps"], loc="upper right")
    for panel, (label, curves, width) in zip(axes[1:], panels, strict=True):
        panel.set_ylabel(label)
        for name, (key, colour) in curves.items():
            values = column(steps, key)
            if values is None:
                placeholder(panel, "not logged")
                continue
            _curve(panel, x, values, colour, width, name)
            panel.set_ylim(0, max(panel.get_ylim()[1], np.nanmax(values)))
        if len(curves) > 1:
            panel.set_ylim(top=1.4 * panel.get_ylim()[1])
            panel.legend(loc="upper right", ncols=len(curves))
    for panel in axes:
        panel.grid(axis="y")
        panel.margins(x=0.01)
    axes[-1].xaxis.set_major_locator(MaxNLocator(nbins=10, integer=True))
    memory = column(steps, "memory_mb")
    note = "" if memory is None else f" (most memory held {np.nanmax(memory) / 1000:.1f} GB)"
    axes[-1].set_xlabel(f"Optimizer step{note}")
    figure.align_ylabels(axes)
    mark_standin(figure, standin)
    return figure


@styled
def draw_overview(steps: Mapping[str, Mapping[str, Steps]], standin: Sequence[str] = ()) -> Figure:
    """Draw the smoothed losses of every variant over the steps, a panel per model.

    `steps` maps a model's label to the steps of its variants.
    """
    if not any(steps.values()):
        raise InputError("training overview: no fine-tuned checkpoint")
    figure, panels = plt.subplots(
        1,
        len(steps),
        figsize=(max(WIDE, 3.5 * len(steps)), 3.2),
        sharey=True,
        squeeze=False,
        layout="constrained",
    )
    names = list(dict.fromkeys(variant for runs in steps.values() for variant in runs))
    drawn: dict[str, Any] = {}
    bounds, smoothed = [], False
    for axes, (model, runs) in zip(panels[0], steps.items(), strict=True):
        for variant, entries in runs.items():
            losses = column(entries, "loss")
            if losses is None:
                continue
            place = names.index(variant)
            x = np.array([entry["step"] for entry in entries])
            window = window_of(len(x))
            smoothed |= window > 1
            bounds.append(smooth(losses, window))
            (drawn[parse_variant(variant).full_label],) = axes.plot(
                *_thin(x, bounds[-1]),
                color=SERIES[place % len(SERIES)],
                linestyle=LINE_STYLES[place // len(SERIES) % len(LINE_STYLES)],
            )
        axes.set_title(model)
        axes.set_xlabel("Optimizer step")
        axes.xaxis.set_major_locator(MaxNLocator(nbins=6, integer=True))
        axes.grid(axis="y")
        axes.margins(x=0.01)
    if bounds:
        together = np.concatenate(bounds)
        _loss_axis(panels[0][0], together, together)
    panels[0][0].set_ylabel("Loss (smoothed)" if smoothed else "Loss")
    figure.legend(drawn.values(), drawn.keys(), loc="outside right center")
    mark_standin(figure, standin)
    return figure


def _title(title: str, x: np.ndarray, losses: np.ndarray | None) -> str:
    steps = f"{title}, {len(x):,} steps"
    if losses is None:
        return steps
    known = losses[~np.isnan(losses)]
    missing = len(losses) - len(known)
    gaps = f" ({missing:,} of them without a finite loss)" if missing else ""
    return f"{steps}{gaps}, loss {known[0]:.3g} at first, {known[-1]:.3g} at last"


def _curve(
    axes: Axes, x: np.ndarray, values: np.ndarray, colour: str, window: int, label: str = ""
) -> None:
    """Plot values, and over them, lighter then, their mean over `window` steps."""
    if window > 1:
        pixels = len(x) > MANY
        axes.plot(x, values, color=colour, alpha=0.3, linewidth=0.6, rasterized=pixels)
    marker = "o" if len(x) < SMOOTHED // 2 else ""
    axes.plot(*_thin(x, smooth(values, window)), color=colour, marker=marker, label=label)


def _thin(x: np.ndarray, values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return at most `DRAWN` points of a curve, its ends among them."""
    chosen = np.unique(np.linspace(0, len(x) - 1, min(len(x), DRAWN)).round().astype(int))
    return x[chosen], values[chosen]


def _loss_axis(axes: Axes, smoothed: np.ndarray, values: np.ndarray) -> None:
    """Let the axis show the smoothed curve well: single steps far off it may leave the plot."""
    low, high = np.nanmin(smoothed), np.nanmax(smoothed)
    wide = low > 0 and high / low > WIDE_RANGE
    lowest, highest = np.nanpercentile(values, (1, 99))
    high = max(high, highest)
    if wide:
        low = min(low, lowest) if lowest > 0 else low
        axes.set_yscale("log")
        axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        axes.yaxis.set_major_formatter(StrMethodFormatter("{x:g}"))
        axes.yaxis.set_minor_formatter(NullFormatter())
        axes.set_ylim(low / 1.1, high * 1.1)
        return
    low = min(low, lowest)
    room = 0.06 * (high - low) or 0.5
    axes.set_ylim(low - room, high + room)
