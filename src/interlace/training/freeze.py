"""Choose what is trained: exactly the planned decoder layers, nothing else."""

from collections.abc import Sequence

from transformers import PreTrainedModel

from interlace.decoder.layers import decoder_layers
from interlace.decoder.surgery import drop_layers
from interlace.errors import InputError


def apply_plan(model: PreTrainedModel, drop: Sequence[int], tune: Sequence[int]) -> list[str]:
    """Drop layers, freeze the rest and leave only `tune` trainable; all numbers of the dense model.

    Returns the sorted names of the trainable parameters, under the numbers after dropping. Raises
    InputError where a layer is both dropped and tuned or does not exist.
    """
    depth = len(decoder_layers(model))
    if set(drop) & set(tune):
        raise InputError(f"plan: layers {sorted(set(drop) & set(tune))} are both dropped and tuned")
    if any(not 0 <= index < depth for index in tune):
        raise InputError(f"plan: tunes {sorted(tune)}, but the model has layers 0 to {depth - 1}")
    kept = [index for index in range(depth) if index not in set(drop)]
    if drop:
        drop_layers(model, drop)
    model.requires_grad_(False)
    layers = decoder_layers(model)
    for index in tune:
        layers[kept.index(index)].requires_grad_(True)

    names = sorted(name for name, weight in model.named_parameters() if weight.requires_grad)
    prefix = next(name for name, module in model.named_modules() if module is layers)
    expected = sorted(
        f"{prefix}.{kept.index(index)}.{name}"
        for index in tune
        for name, _ in layers[kept.index(index)].named_parameters()
    )
    assert names == expected, f"trainable {set(names) ^ set(expected)} differ from the plan"
    return names
