"""Wanda and magnitude pruning to two non-zero weights in every four.

Wanda's metric of a weight is |W_rc| x ||X_c||, the norm of its input feature over the calibration
tokens (Sun et al., "A Simple and Effective Pruning Approach for Large Language Models", equation 1,
as in locuslab/wanda); magnitude's is |W_rc|. In each row, the two smallest of every four consecutive
columns become zero; of equal ones the first. Only the Linear weights of the language decoder's
layers are pruned.
"""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch
from transformers import PreTrainedModel

from interlace.decoder.layers import decoder_layers
from interlace.decoder.replay import DecoderCall
from interlace.errors import InputError
from interlace.progress import track

METHODS = ("wanda_2_4", "magnitude_2_4")


@torch.no_grad()
def prune_two_four(
    model: PreTrainedModel,
    method: str,
    batches: Iterable[Mapping[str, torch.Tensor]] = (),
) -> dict[str, Any]:
    """Prune `model` in place by `method` (one of METHODS); return `two_four_report`.

    Wanda goes layer by layer: a layer's inputs are those that the pruned layers before it give,
    over all real tokens of `batches` (dicts of `input_ids` (B, T), `attention_mask` and what else
    the model takes). One layer's activations are held at a time. Raises InputError for an unknown
    method, Wanda without batches, a weight whose columns are no multiple of four, a weight or an
    input that is not finite, or a decoder with matrices that are no Linear weights (mixtures of
    experts).
    """
    if method not in METHODS:
        raise InputError(f"sparsity method {method!r}: choose one of {', '.join(METHODS)}")
    layers = decoder_layers(model)
    _check_weights(layers)
    if method == "magnitude_2_4":
        for _, linear in linear_weights(layers):
            _zero(linear, linear.weight.abs())
        return two_four_report(model)
    calls = [DecoderCall(model, batch) for batch in batches]
    if not calls:
        raise InputError("wanda_2_4 needs calibration samples; there are none")
    outputs: list[torch.Tensor | None] = [None] * len(calls)
    for index, layer in enumerate(track(layers, "Wanda 2:4", unit="layer")):
        norms = _input_norms(layer, index, calls, outputs)
        for name, linear in linear_weights(layer):
            if not torch.isfinite(norms[name]).all():
                raise InputError(
                    f"layers.{index}.{name}: its inputs are not finite; use a wider dtype or check "
                    "the weights"
                )
            metric = linear.weight.abs().to(norms[name].dtype) * norms[name]
            _zero(linear, metric)
        for position, call in enumerate(calls):  # each output takes the place of the one before
            outputs[position] = call.run_layer(index, outputs[position])
    return two_four_report(model)


def two_four_report(model: PreTrainedModel) -> dict[str, Any]:
    """Return what can be counted of the pattern: weights, zeros, groups of four by their zeros.

    `groups_with_two_zeros` equals `groups` unless weights were zero before.
    """
    weights = zeros = groups = exact = 0
    tensors = linear_weights(decoder_layers(model))
    for _, linear in tensors:
        empty = (linear.weight == 0).reshape(-1, 4).sum(1)
        weights += linear.weight.numel()
        zeros += int(empty.sum())
        groups += len(empty)
        exact += int((empty == 2).sum())
    return {
        "num_tensors": len(tensors),
        "weights": weights,
        "zeros": zeros,
        "sparsity_percent": 100 * zeros / weights,
        "groups": groups,
        "groups_with_two_zeros": exact,
    }


def _check_weights(layers: torch.nn.ModuleList) -> None:
    linears = dict(linear_weights(layers))
    for name, linear in linears.items():
        if linear.in_features % 4:
            raise InputError(f"layers.{name}: {linear.in_features} columns cannot be pruned 2:4")
        if not torch.isfinite(linear.weight).all():
            raise InputError(
                f"layers.{name}.weight holds NaN or infinity; get the checkpoint again"
            )
    known = {id(linear.weight) for linear in linears.values()}
    for name, weight in layers.named_parameters():
        if weight.dim() > 1 and id(weight) not in known:
            raise InputError(
                f"layers.{name} is no Linear weight (a mixture of experts?); 2:4 sparsity covers"
                " decoders of Linear weights only"
            )


def linear_weights(module: torch.nn.Module) -> list[tuple[str, torch.nn.Linear]]:
    """Return the Linear modules below `module` with their names."""
    return [(name, m) for name, m in module.named_modules() if isinstance(m, torch.nn.Linear)]


def _zero(linear: torch.nn.Linear, metric: torch.Tensor) -> None:
    """Set the two weights of smallest `metric` in every four of a row to zero; of ties the first."""
    groups = metric.reshape(-1, 4)
    smallest = groups.argsort(dim=1, stable=True)[:, :2]
    mask = torch.zeros_like(groups, dtype=torch.bool).scatter_(1, smallest, True)
    linear.weight.masked_fill_(mask.reshape(linear.weight.shape), 0)


def _input_norms(
    layer: torch.nn.Module,
    index: int,
    calls: Sequence[DecoderCall],
    outputs: Sequence[torch.Tensor | None],
) -> dict[str, torch.Tensor]:
    """Return, for each Linear of `layer`, the norm of every input feature over the real tokens.

    In float32 (float64 for a model in float64). The reference takes the mean over samples before
    the root; that scales a whole layer's metric and changes no mask.
    """
    sums: dict[str, torch.Tensor] = {}
    real_BT = calls[0].real_BT

    def collect(name: str):
        def hook(_module: torch.nn.Module, args: tuple[torch.Tensor]) -> None:
            values = args[0].detach()[real_BT]
            wide = torch.float64 if values.dtype == torch.float64 else torch.float32
            squares = values.to(wide).square().sum(0)
            sums[name] = sums[name] + squares if name in sums else squares

        return hook

    handles = [
        linear.register_forward_pre_hook(collect(name)) for name, linear in linear_weights(layer)
    ]
    try:
        for call, previous in zip(calls, outputs, strict=True):
            real_BT = call.real_BT
            call.run_layer(index, previous)
    finally:
        for handle in handles:
            handle.remove()
    return {name: total.sqrt() for name, total in sums.items()}
