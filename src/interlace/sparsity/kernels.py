"""2:4 sparse weights on the kernels that a GPU has for them, or the reason why not."""

import warnings
from typing import Any

import torch
from torch.sparse import to_sparse_semi_structured
from transformers import PreTrainedModel

from interlace.decoder.layers import decoder_layers
from interlace.sparsity.two_four import linear_weights

DENSE, SEMI_STRUCTURED = "dense", "semi_structured"
CAPABILITY = (8, 0)  # Ampere, the first with sparse tensor cores
DTYPES = (torch.float16, torch.bfloat16)
TOKENS = 16  # of the trial product


def is_two_four(model: PreTrainedModel) -> bool:
    """Return whether every four consecutive weights of the decoder's Linears hold two zeros."""
    return all(
        linear.in_features % 4 == 0
        and bool(((linear.weight == 0).reshape(-1, 4).sum(1) >= 2).all())
        for _, linear in linear_weights(decoder_layers(model))
    )


@torch.no_grad()
def use_sparse_kernels(model: PreTrainedModel, wanted: str | bool = "auto") -> dict[str, Any]:
    """Put the decoder of a 2:4 sparse model on torch's semi-structured kernels, in place.

    All of its Linear weights, or none where a kernel for one is missing. `wanted` is the config's
    `ttft.sparse_kernels`: `auto`, or `off` for dense kernels. Return `kernels`, `dense` or
    `semi_structured`, and the `kernels_reason`. The model can't be saved afterwards.
    """
    reason = _why_dense(model, wanted)
    if reason:
        return {"kernels": DENSE, "kernels_reason": reason}
    linears = [linear for _, linear in linear_weights(decoder_layers(model))]
    for linear in linears:
        linear.weight = _compressed(linear.weight)
    return {
        "kernels": SEMI_STRUCTURED,
        "kernels_reason": f"{len(linears)} weights as {type(linears[0].weight.data).__name__}",
    }


def _why_dense(model: PreTrainedModel, wanted: str | bool) -> str | None:
    if wanted in ("off", False):  # YAML reads a bare `off` as false
        return "ttft.sparse_kernels is off"
    if not is_two_four(model):
        return "the weights are not 2:4 sparse"
    if model.device.type != "cuda":
        return "there is no CUDA device"
    capability = torch.cuda.get_device_capability(model.device)
    if capability < CAPABILITY:
        major, minor = capability
        return f"compute capability {major}.{minor} is below {CAPABILITY[0]}.{CAPABILITY[1]}"
    if model.dtype not in DTYPES:
        return f"no kernels for {str(model.dtype).removeprefix('torch.')} weights"
    return _failed_trial(model)


def _failed_trial(model: PreTrainedModel) -> str | None:
    """Multiply by one weight of every shape; return the first refusal of torch's kernels."""
    named = linear_weights(decoder_layers(model))
    shapes = {linear.weight.shape: (name, linear) for name, linear in named}
    for shape, (name, linear) in shapes.items():
        try:
            inputs = linear.weight.new_zeros(1, TOKENS, linear.in_features)
            torch.nn.functional.linear(inputs, _compressed(linear.weight), linear.bias)
        except RuntimeError as error:
            first_line = (str(error).strip().splitlines() or [type(error).__name__])[0]
            return f"torch refuses layers.{name} of shape {tuple(shape)}: {first_line}"
    return None


def _compressed(weight: torch.Tensor) -> torch.nn.Parameter:
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*SparseSemiStructuredTensor is in prototype")
        sparse = to_sparse_semi_structured(weight.detach().contiguous())
    return torch.nn.Parameter(sparse, requires_grad=False)
