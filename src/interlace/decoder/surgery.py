"""Take decoder layers out of a model, and leave a config that says so."""

from collections.abc import Sequence
from typing import Any

import torch
from transformers import PreTrainedConfig, PreTrainedModel

from interlace.decoder.layers import decoder_layers, decoder_stack, text_config
from interlace.errors import InputError


def drop_layers(model: PreTrainedModel, drop: Sequence[int]) -> None:
    """Remove the decoder layers `drop` (0-based) from `model`, in place.

    The layers that stay are renumbered (`layer_idx`: without it a key-value cache is addressed out
    of range), and the depth and the per-layer lists of the config follow (a stale depth reloads
    with randomly initialised layers). Raises InputError for layers that do not exist, are named
    twice, if none would stay, or for a list in the config that cannot be carried over; the model is
    then as it was.
    """
    layers = decoder_layers(model)
    depth = len(layers)
    wrong = [index for index in drop if not 0 <= index < depth]
    if wrong:
        raise InputError(
            f"cannot drop layer {wrong[0]}: the model has layers 0 to {depth - 1}; was the plan made"
            " for another model?"
        )
    if len(set(drop)) != len(drop):
        raise InputError(f"cannot drop a layer twice: {sorted(drop)}")
    kept = [index for index in range(depth) if index not in set(drop)]
    if not kept:
        raise InputError(f"dropping all {depth} decoder layers leaves no model")

    holder = decoder_stack(model)
    # The top config, the decoder's own and the layers' usually share one object, but need not.
    holders = [model, holder, *layers.modules()]
    configs = [text_config(module.config) for module in holders if hasattr(module, "config")]
    configs = list({id(config): config for config in configs}.values())
    entries = [_entries(config, kept) for config in configs]  # all are known before any changes

    holder.layers = torch.nn.ModuleList(layers[index] for index in kept)
    for position, layer in enumerate(decoder_layers(model)):
        for module in layer.modules():
            if hasattr(module, "layer_idx"):
                module.layer_idx = position
    for config, changed in zip(configs, entries, strict=True):
        for key, value in changed.items():
            setattr(config, key, value)


def _entries(config: PreTrainedConfig, kept: Sequence[int]) -> dict[str, Any]:
    """Return what a decoder's config has to say of the layers `kept`, so that a reload is the same.

    Every list with an entry per layer is sliced. Which layers are mixtures of experts follows from
    their numbers (`decoder_sparse_step`, `mlp_only_layers`); afterwards it is listed.
    """
    depth = config.num_hidden_layers
    changed: dict[str, Any] = {"num_hidden_layers": len(kept)}
    for key, value in vars(config).items():
        if "layer" not in key or key == "mlp_only_layers" or not isinstance(value, list | tuple):
            continue
        if len(value) == depth:
            changed[key] = [value[index] for index in kept]
        elif value:
            raise InputError(
                f"config entry {key} has {len(value)} items for {depth} layers; what it says of"
                " the layers that stay is unknown"
            )
    if hasattr(config, "mlp_only_layers"):
        step = config.decoder_sparse_step
        dense = {i for i in range(depth) if i in config.mlp_only_layers or (i + 1) % step}
        changed["mlp_only_layers"] = [new for new, old in enumerate(kept) if old in dense]
        changed["decoder_sparse_step"] = 1
    return changed
