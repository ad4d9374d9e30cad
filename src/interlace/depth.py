"""What a configuration asks of a model, against its number of decoder layers.

Loads without torch. Asked before anything runs where the depth is known by then, else in the job that
brings the model.
"""

from typing import Any

from interlace.decoder.ratio import num_dropped
from interlace.errors import InputError
from interlace.grid import Grid
from interlace.selection.registry import METHODS
from interlace.variants import split_plan_id

Config = dict[str, Any]


def check_depth(config: Config, key: str, depth: int | None) -> None:
    """Check a complete configuration for the model `key` of `depth` layers; None: not yet known.

    Raises InputError with one line that names the key of the configuration and what is possible.
    """
    _check_ratios(config["experiments"], key, depth)
    for i, layer in enumerate(config["plan"]["protect"]):
        if depth is not None and layer >= depth:
            raise InputError(
                f"config: plan.protect[{i}]: {key} has no layer {layer}; its layers are 0 to {depth - 1}"
            )
    _check_windows(config, key, depth)


def _check_ratios(experiments: Config, key: str, depth: int | None) -> None:
    """Check that every ratio drops at least one layer and at most a third (K = floor(rho L))."""
    places = [("experiments.ratio", experiments["ratio"])]
    places += [(f"experiments.ratios[{i}]", r) for i, r in enumerate(experiments["ratios"])]
    for place, ratio in places:
        if ratio > 33:
            raise InputError(
                f"config: {place}: {ratio} % is more than a third of the layers, and every dropped "
                "layer needs a triplet of its own; use at most 33"
            )
        if depth is not None and ratio * depth // 100 == 0:
            raise InputError(
                f"config: {place}: {ratio} % of the {depth} layers of {key} drops no layer; "
                f"use at least {-(-100 // depth)}"
            )


def _check_windows(config: Config, key: str, depth: int | None) -> None:
    """Check that the windows measured or imported are as long as the methods to be planned need."""
    longest, imported = config["scoring"]["max_window"], config["models"][key]["scores"]
    if not imported and depth is not None and longest is not None and longest > depth:
        raise InputError(
            f"config: scoring.max_window: {longest}; {key} has {depth} layers: use at most "
            f"{depth}, or null"
        )
    for model, plan in Grid(config).plans_wanted():
        method, ratio = split_plan_id(plan)
        needs_window = METHODS[method].needs_window
        if model != key or needs_window is None or ratio is None:
            continue
        if imported:
            raise InputError(
                f"config: models.{key}.scores: {method} goes by longer windows than the imported "
                f"scores hold; leave {method} out of experiments or set models.{key}.scores: null"
            )
        if depth is None or longest is None:
            continue
        size = needs_window(num_dropped(ratio, depth))
        if size > longest:
            raise InputError(
                f"config: scoring.max_window: {longest}; {method} at {ratio} % of the {depth} "
                f"layers of {key} needs windows of {size} layers; use {size} or more, or null"
            )
