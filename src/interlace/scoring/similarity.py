"""Similarity of the hidden state before and after every window of decoder layers, in one pass.

Shapes: B samples, T tokens, N real tokens of a batch, D hidden size, L layers, W windows, R kept
boundaries, 2 modalities (text, visual). Boundary l is the input of layer l; boundary L is the raw
output of the last layer.
"""

import contextlib
import math
from collections.abc import Iterable, Iterator
from typing import Any

import numpy as np
import torch

from interlace.decoder.layers import decoder_layers, image_token_id
from interlace.scoring.store import window_list

CONVENTION = (
    "cos(x, y) of float32 vectors, real tokens only; x is the input of the window's first layer, y "
    "the input of the layer after the window, which includes what DeepStack adds between the two; "
    "after the last layer y is its raw output, before the final norm; angles are arccos of the "
    "cosine at a sample's last real token, over pi"
)
_TINY = 1e-12  # a vector of zeros has cosine 0 with every other


class WindowRecorder:
    """Sums cosine similarities over tokens while a model runs, in a `with` block.

    Hooks see each layer's input and the last one's raw output. The unit vectors of the last
    `max_window` boundaries and the one at hand are kept, real tokens only, in float32 (float64 if
    the model is), so that all windows ending at a boundary are one batched product. Nothing waits
    for the device, and nothing is copied off it. In the block float32 products are real float32:
    no TF32, no autocast.
    """

    def __init__(self, model: torch.nn.Module, max_window: int) -> None:
        self._model = model
        self._layers = decoder_layers(model)
        self._sizes = range(1, max_window + 1)
        self._kept = max_window + 1
        self._image_token_id = image_token_id(model.config)
        self._device = model.device
        depth = len(self._layers)
        self.windows = window_list(depth, self._sizes)
        # Where `_cosines` holds each window: the row of its end, the slot of its start.
        places = [(start + size) * self._kept + start % self._kept for size, start in self.windows]
        self._places_W = torch.tensor(places, device=self._device)
        self._ring = torch.empty(0)
        self._batch: _Batch | None = None

    def start(self, batch: dict[str, torch.Tensor]) -> np.ndarray:
        """Prepare for a batch, whose tensors are on the CPU; return its token counts (B, 2)."""
        self._batch = _Batch(batch, self._image_token_id, self._device)
        return self._batch.counts_B2

    def take(self) -> tuple[torch.Tensor, torch.Tensor]:
        """Return sums (B, W, 2) and angles (B, W) of the batch that ran, still on the device."""
        batch, self._batch = self._batch, None
        assert batch is not None, "call start() before take()"
        assert batch.cosines is not None, "the model did not run since start()"
        rows = 2 * batch.num_samples
        cosines = batch.cosines.flatten(1)
        segments = torch.arange(rows, device=self._device)[:, None] == batch.segments_N
        segments = segments.to(cosines.dtype)
        # In the product a NaN would reach every sample of the batch: it is put back into its own.
        bad_N1 = ~cosines.isfinite().all(1, keepdim=True)
        sums = segments @ cosines.masked_fill_(bad_N1, 0)
        sums.masked_fill_(segments @ bad_N1.to(cosines.dtype) > 0, math.nan)
        sums = sums.index_select(1, self._places_W)
        sums_BW2 = sums.view(batch.num_samples, 2, -1).transpose(1, 2)
        last = batch.last_units  # (L+1, B, D)
        angles = [_angle(last[: len(last) - size], last[size:]) for size in self._sizes]
        return sums_BW2, torch.cat(angles).T

    def __enter__(self) -> "WindowRecorder":
        with contextlib.ExitStack() as stack:
            stack.enter_context(_real_float32(self._device.type))
            for index, layer in enumerate(self._layers):
                handle = layer.register_forward_pre_hook(self._before(index), with_kwargs=True)
                stack.callback(handle.remove)
            stack.callback(self._layers[-1].register_forward_hook(self._after_last).remove)
            self._exit = stack.pop_all()
        return self

    def __exit__(self, *_: object) -> None:
        self._exit.close()
        self._ring = torch.empty(0)

    def _before(self, index: int) -> Any:
        def hook(_module: Any, args: tuple, kwargs: dict) -> None:
            self._see(index, args[0] if args else kwargs["hidden_states"])

        return hook

    def _after_last(self, _module: Any, _args: tuple, output: Any) -> None:
        self._see(len(self._layers), output[0] if isinstance(output, tuple) else output)

    def _see(self, boundary: int, hidden_BTD: torch.Tensor) -> None:
        """Score every window that ends at `boundary`, where the hidden state is this."""
        batch = self._batch
        assert batch is not None, "call start() before the model runs"
        hidden_ND = hidden_BTD.detach().reshape(-1, hidden_BTD.shape[-1])
        if batch.real_N is not None:
            hidden_ND = hidden_ND.index_select(0, batch.real_N)
        dtype = torch.promote_types(hidden_ND.dtype, torch.float32)
        ring_RND = self._slots(hidden_ND.shape, dtype)
        if batch.cosines is None:
            num_tokens, last = len(hidden_ND), len(self._layers) + 1
            batch.cosines = hidden_ND.new_zeros((num_tokens, last, self._kept), dtype=dtype)
            width = hidden_ND.shape[1]
            batch.last_units = hidden_ND.new_empty((last, batch.num_samples, width), dtype=dtype)
        norm_N1 = torch.linalg.vector_norm(hidden_ND, dim=-1, keepdim=True, dtype=dtype)
        unit_ND = ring_RND[boundary % self._kept]
        torch.div(hidden_ND, norm_N1.clamp_min(_TINY), out=unit_ND)
        torch.index_select(unit_ND, 0, batch.last_B, out=batch.last_units[boundary])
        filled = min(boundary + 1, self._kept)
        # A row times a matrix for each token: on the CPU several times as fast as the transpose.
        product_N1R = torch.bmm(unit_ND.unsqueeze(1), ring_RND[:filled].permute(1, 2, 0))
        batch.cosines[:, boundary, :filled] = product_N1R[:, 0]

    def _slots(self, shape: torch.Size, dtype: torch.dtype) -> torch.Tensor:
        """Return the ring (R, N, D), allocated anew only for a batch larger than any before."""
        wanted = self._kept * shape.numel()
        if self._ring.numel() < wanted or self._ring.dtype != dtype:
            self._ring = torch.empty(0)  # let go of the old one first
            self._ring = torch.empty(wanted, dtype=dtype, device=self._device)
        return self._ring[:wanted].view(self._kept, *shape)


class _Batch:
    """What the hooks need to know of a batch, computed on the CPU and sent without waiting."""

    def __init__(
        self, batch: dict[str, torch.Tensor], image_token: int | None, device: torch.device
    ) -> None:
        real_BT = batch["attention_mask"].bool()
        visual_BT = (
            torch.zeros_like(real_BT) if image_token is None else batch["input_ids"] == image_token
        )
        modalities = torch.stack([real_BT & ~visual_BT, real_BT & visual_BT], dim=-1)
        self.counts_B2 = modalities.sum(1).double().numpy()
        self.num_samples = len(real_BT)
        samples = torch.arange(self.num_samples)[:, None]
        segments_BT = 2 * samples + visual_BT
        self.segments_N = send(segments_BT[real_BT], device)
        self.last_B = send(real_BT.sum(1).cumsum(0) - 1, device)
        index_N = real_BT.flatten().nonzero()[:, 0]
        self.real_N = None if real_BT.all() else send(index_N, device)
        self.cosines: torch.Tensor | None = None  # (N, L+1, R)
        self.last_units: torch.Tensor = torch.empty(0)  # (L+1, B, D)


def _angle(u: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
    """Return arccos(u . v) / pi of unit vectors; arccos itself loses all digits near 1."""
    apart, together = (torch.linalg.vector_norm(x, dim=-1) for x in (u - v, u + v))
    return 2 / math.pi * torch.atan2(apart, together)


def send(value: torch.Tensor, device: torch.device, dtype: torch.dtype | None = None) -> Any:
    """Return `value` on `device` without waiting for the copy."""
    if device.type == "cuda":
        value = value.pin_memory()
    return value.to(device, dtype, non_blocking=True)


@contextlib.contextmanager
def _real_float32(device_type: str) -> Iterator[None]:
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("highest")
    try:
        with torch.autocast(device_type, enabled=False):
            yield
    finally:
        torch.set_float32_matmul_precision(before)


@torch.inference_mode()
def window_sums(
    model: torch.nn.Module, batches: Iterable[dict[str, torch.Tensor]], max_window: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return sums (N, W, 2), token counts (N, 2) and angles (N, W) over all samples of `batches`.

    Float64 arrays; N counts samples here. The batches are what `interlace.data.collate` makes,
    on the CPU; `labels` are not used. No logits are made. Windows as `window_list` orders them.
    """
    with WindowRecorder(model, max_window) as recorder:
        return run_batches(model, batches, recorder)


@torch.inference_mode()
def run_batches(
    model: torch.nn.Module, batches: Iterable[dict[str, torch.Tensor]], recorder: WindowRecorder
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Do what `window_sums` says, with a recorder that is in its `with` block."""
    num_windows = len(recorder.windows)
    counts = [np.zeros((0, 2))]
    device = model.device
    sums, angles = [torch.zeros((0, num_windows, 2), device=device)], []
    angles.append(torch.zeros((0, num_windows), device=device))
    for batch in batches:
        counts.append(recorder.start(batch))
        model.base_model(**to_model(batch, model), use_cache=False)
        for results, result in zip((sums, angles), recorder.take(), strict=True):
            results.append(result)
    # The only wait for the device.
    totals, turned = (torch.cat(results).double().cpu().numpy() for results in (sums, angles))
    return totals, np.concatenate(counts), turned


def to_model(batch: dict[str, torch.Tensor], model: torch.nn.Module) -> dict[str, torch.Tensor]:
    """Return the inputs of a batch on the model's device, pixels in its dtype; no labels."""
    return {
        key: send(value, model.device, model.dtype if value.is_floating_point() else None)
        for key, value in batch.items()
        if key != "labels"
    }
