"""The least time that a first token could take, from the config alone: a roofline.

Of every stage, operations over the device's rate of them or bytes over its bandwidth, whichever is
longer (Williams, Waterman and Patterson 2009). Only what cannot be left out is counted: products of
matrices, half of the attention where it is causal, weights read once, the cache written once. So a
time is a lower bound, and the ratio of two says what leaving layers out can gain at most on a
device that is used fully; overheads make the measured gain less, a decoder used worse than the
vision tower makes it more.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from interlace.decoder.layers import text_config
from interlace.evaluation.ttft import clock
from interlace.evaluation.ttft.turns import Measured

FAMILIES = ("qwen3_vl",)
_SPARSE_WORK, _SPARSE_BYTES = 1 / 2, 9 / 16  # 2:4 in 16 bits: half the values, 2 bits for each kept


@dataclass(frozen=True)
class Work:
    """Floating point operations and bytes moved; a product of matrices has two a multiplication."""

    flops: float
    bytes: float


@dataclass(frozen=True)
class Peaks:
    """What a device does at most: operations and bytes per second, measured by `measure_peaks`."""

    flops_per_s: float
    bytes_per_s: float


def prefill_work(
    config: Any,
    images: Sequence[Sequence[int]],
    tokens: int,
    itemsize: int,
    *,
    sparse: bool = False,
) -> dict[str, Work]:
    """Return the work of a first token by stage (vision, projector, decoder); one prompt.

    `images` are rows of image_grid_thw: frames, and patches down and across. `tokens` is the length
    of the prompt, visual tokens included; `itemsize` bytes of a weight. `sparse`: the decoder runs
    on 2:4 kernels. `decoder` includes the head for one position. Raises KeyError for a family that
    is not in `FAMILIES`.
    """
    if config.model_type not in FAMILIES:
        raise KeyError(config.model_type)
    text, vision = text_config(config), config.vision_config
    frames = [height * width for times, height, width in images for _ in range(times)]
    patches = sum(frames)
    decoder = _decoder(text, tokens, itemsize, sparse)
    head = text.hidden_size * text.vocab_size
    return {
        "vision": _tower(vision, frames, itemsize),
        "projector": _projector(vision, patches, itemsize),
        "decoder": Work(decoder.flops + 2 * head, decoder.bytes + head * itemsize),
    }


def work_of(
    model: Any, samples: Sequence[Measured], *, sparse: bool = False
) -> list[dict[str, Work]] | None:
    """Return each sample's `prefill_work` on a model; None if its family is not in `FAMILIES`."""
    if model.config.model_type not in FAMILIES:
        return None
    return [
        prefill_work(
            model.config,
            sample.images,
            sample.visual_tokens + sample.text_tokens,
            model.dtype.itemsize,
            sparse=sparse,
        )
        for sample in samples
    ]


def _tower(vision: Any, frames: Sequence[int], itemsize: int) -> Work:
    hidden, patches = vision.hidden_size, sum(frames)
    if not patches:
        return Work(0.0, 0.0)
    patch = vision.in_channels * vision.temporal_patch_size * vision.patch_size**2
    block = 4 * hidden**2 + 2 * hidden * vision.intermediate_size
    weights = patch * hidden + vision.depth * block
    attention = vision.depth * sum(4 * count**2 * hidden for count in frames)
    return Work(2 * patches * weights + attention, weights * itemsize)


def _projector(vision: Any, patches: int, itemsize: int) -> Work:
    if not patches:
        return Work(0.0, 0.0)
    wide = vision.hidden_size * vision.spatial_merge_size**2
    mergers = 1 + len(vision.deepstack_visual_indexes)
    weights = mergers * (wide**2 + wide * vision.out_hidden_size)
    tokens = patches / vision.spatial_merge_size**2
    return Work(2 * tokens * weights, weights * itemsize)


def _decoder(text: Any, tokens: int, itemsize: int, sparse: bool) -> Work:
    query, key = (text.head_dim * n for n in (text.num_attention_heads, text.num_key_value_heads))
    layer = text.hidden_size * (2 * query + 2 * key + 3 * text.intermediate_size)
    layers = text.num_hidden_layers
    products = 2 * tokens * layers * layer * (_SPARSE_WORK if sparse else 1)
    attention = layers * 2 * tokens**2 * query  # causal: half of the scores, and of their sums
    weights = layers * layer * (_SPARSE_BYTES if sparse else 1) * itemsize
    cache = layers * 2 * tokens * key * itemsize
    return Work(products + attention, weights + cache)


def bounds(work: Mapping[str, Work], peaks: Peaks) -> dict[str, float]:
    """Return the least seconds of each stage; their sum is the least of a first token."""
    return {
        name: max(part.flops / peaks.flops_per_s, part.bytes / peaks.bytes_per_s)
        for name, part in work.items()
    }


@torch.inference_mode()
def measure_peaks(device: torch.device, dtype: torch.dtype) -> Peaks:
    """Return what a product of large matrices and a copy of a large tensor reach, the best of six."""
    on_gpu = device.type == "cuda"
    size = 8192 if on_gpu else 1024
    a, b = (torch.randn(size, size, device=device).to(dtype) for _ in range(2))
    product = _best(device, lambda: torch.mm(a, b), 10 if on_gpu else 2)
    source = torch.empty(2**30 if on_gpu else 2**27, dtype=torch.uint8, device=device).zero_()
    target = torch.empty_like(source)
    copied = _best(device, lambda: target.copy_(source), 10 if on_gpu else 2)
    return Peaks(2 * size**3 / product, 2 * source.numel() / copied)


def _best(device: torch.device, run: Any, rounds: int) -> float:
    """Return the seconds of one run, the best of six times `rounds` in a row."""
    found = []
    run()
    for _ in range(6):
        clock.synchronize(device)
        start = clock.now()
        for _ in range(rounds):
            run()
        clock.synchronize(device)
        found.append((clock.now() - start) / rounds)
    return min(found)
