"""Take decoder layers out of a model, and leave a config that says so."""

from collections.abc import Sequence

import torch
from transformers import PreTrainedModel

from interlace.decoder.layers import decoder_layers, decoder_stack, text_config
from interlace.errors import InputError

# Config entries with one item per decoder layer.
PER_LAYER_KEYS = ("layer_types", "mlp_layer_types", "no_rope_layers")


def drop_layers(model: PreTrainedModel, drop: Sequence[int]) -> None:
    """Remove the decoder layers `drop` (0-based) from `model`, in place.

    The layers that stay are renumbered (`layer_idx`: without it a key-value cache is addressed out
    of range), and the depth and the per-layer lists of the config follow (a stale depth reloads
    with randomly initialised layers). Raises InputError for layers that do not exist, are named
    twice, or if none would stay.
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

    holder, name = decoder_stack(model)
    setattr(holder, name, torch.nn.ModuleList(layers[index] for index in kept))
    for position, layer in enumerate(decoder_layers(model)):
        for module in layer.modules():
            if hasattr(module, "layer_idx"):
                module.layer_idx = position
    # The top config, the decoder's own and the layers' usually share one object, but need not.
    holders = [model, holder, *decoder_layers(model).modules()]
    configs = [text_config(module.config) for module in holders if hasattr(module, "config")]
    for config in {id(config): config for config in configs}.values():
        config.num_hidden_layers = len(kept)
        for key in PER_LAYER_KEYS:
            values = getattr(config, key, None)
            if isinstance(values, list | tuple) and len(values) == depth:
                setattr(config, key, [values[index] for index in kept])
