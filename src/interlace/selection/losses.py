"""What the loss-based methods go by: SLEB's removals and the one-shot losses, read and checked."""

import math
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from interlace.errors import InputError
from interlace.io import digest, read_json


@dataclass(frozen=True)
class Losses:
    """The loss without each layer, in the order of the file, and the dense model's loss.

    `weights` are those measured on (`interlace.stamps.weights_record`). `work`: the layers
    that were run for it, and that a plain search would have run, where the file says so.
    """

    by_layer: dict[int, float]
    base_loss: float
    digest: str
    calibration: dict[str, Any]
    weights: dict[str, Any]
    work: tuple[int, int] | None = None


def read_removals(path: str | Path, model: str, num_layers: int) -> Losses:
    """Read SLEB's `sleb.json`: layers in the order of removal, each with the loss once it was gone.

    Raises `InputError` for a search on another model or depth, a layer that is none or is removed
    twice, and a loss that is not finite.
    """
    body = read_json(path)
    try:
        removals = [(r["layer"], r["loss"]) for r in body["removals"]]
        by_layer = dict(removals)
    except (KeyError, TypeError) as error:
        raise InputError(
            f"{path}: not a result of SLEB's search ({error!r}); search again"
        ) from None
    found = _checked(path, body, by_layer, (model, num_layers), "a search", "search again")
    for layer, _ in removals:
        if type(layer) is not int or layer not in range(num_layers):
            raise InputError(
                f"{path}: removes {layer!r}, no layer of 0 to {num_layers - 1}; search again"
            )
    if len(by_layer) != len(removals):
        raise InputError(f"{path}: removes a layer twice; search again")
    work = (body.get("layer_evaluations"), body.get("layer_evaluations_uncached"))
    if all(type(number) is int and number > 0 for number in work):
        found = replace(found, work=work)
    return found


def read_losses(path: str | Path, model: str, num_layers: int) -> Losses:
    """Read `block_losses.json`: the loss without each single layer, layer 0 first.

    Raises `InputError` for losses of another model or depth, missing ones and NaN.
    """
    body = read_json(path)
    try:
        if not isinstance(body["losses"], list):
            raise TypeError("`losses` is no list")
        by_layer = dict(enumerate(body["losses"]))
    except (KeyError, TypeError) as error:
        raise InputError(f"{path}: not a file of losses ({error!r}); measure again") from None
    found = _checked(path, body, by_layer, (model, num_layers), "losses", "measure again")
    if len(by_layer) != num_layers:
        raise InputError(f"{path}: {len(by_layer)} losses for {num_layers} layers; measure again")
    return found


def _checked(
    path: str | Path,
    body: dict[str, Any],
    by_layer: dict[int, Any],
    needed: tuple[str, int],
    what: str,
    mend: str,
) -> Losses:
    try:
        model, num_layers, base_loss = body["model"], body["num_layers"], body["base_loss"]
        calibration = body["calibration"]
        text, samples = calibration["text"], len(calibration["samples"])
    except (KeyError, TypeError) as error:
        raise InputError(f"{path}: lacks a key ({error!r}); {mend}") from None
    if (model, num_layers) != needed:
        raise InputError(
            f"{path}: {what} on {model}, {num_layers} layers; needed is {needed[0]}, {needed[1]}: "
            f"{mend}"
        )
    for layer, loss in [("none", base_loss), *by_layer.items()]:
        number = isinstance(loss, int | float) and not isinstance(loss, bool)
        if not number or not math.isfinite(loss) or loss <= 0:
            raise InputError(f"{path}: the loss without layer {layer} is {loss}; {mend}")
    about = {"text": text, "modality": "all", "subsets": None, "num_samples": samples}
    weights = {key: body.get(key) for key in ("model_digest", "model_files")}
    found = digest([base_loss, list(by_layer.items())])
    return Losses(by_layer, float(base_loss), found, about, weights)
