"""Choose what is trained: exactly the planned decoder layers, nothing else."""

from collections.abc import Mapping, Sequence
from typing import Any

from transformers import PreTrainedModel

from interlace.decoder.layers import decoder_layers
from interlace.decoder.surgery import drop_layers
from interlace.errors import InputError


def trains_head(plan: Mapping[str, Any]) -> bool:
    """Say whether a plan's reading trains an untied output head too (`apply_plan`)."""
    return plan["reading"] == "released"


def apply_plan(
    model: PreTrainedModel, drop: Sequence[int], tune: Sequence[int], head: bool = False
) -> list[str]:
    """Drop layers, freeze the rest and leave only `tune` trainable; all numbers of the dense model.

    With `head` an output head of its own weights is trained too, which is what the paper's released
    code does (it freezes an attribute of the module, not the weight); one tied to the embeddings
    stays frozen with them. Returns the sorted names of the trainable parameters, under the numbers
    after dropping. Raises InputError where a layer is both dropped and tuned or does not exist.
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

    output = model.get_output_embeddings()
    untied = output is not None and output.weight is not model.get_input_embeddings().weight
    if head and tune and untied:
        output.requires_grad_(True)

    names = sorted(name for name, weight in model.named_parameters() if weight.requires_grad)
    prefix = next(name for name, module in model.named_modules() if module is layers)
    expected = sorted(
        f"{prefix}.{kept.index(index)}.{name}"
        for index in tune
        for name, _ in layers[kept.index(index)].named_parameters()
    )
    if head and tune and untied:
        whole = next(name for name, module in model.named_modules() if module is output)
        expected = sorted(
            [*expected, *(f"{whole}.{name}" for name, _ in output.named_parameters())]
        )
    assert names == expected, f"trainable {set(names) ^ set(expected)} differ from the plan"
    return names
