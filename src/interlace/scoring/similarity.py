"""Similarity of the hidden state before and after every window of decoder layers, in one pass.

Shapes: B samples, T tokens, D hidden size, W windows, 2 modalities (text, visual).
"""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch

from interlace.data.chat import load_records
from interlace.decoder.layers import decoder_layers
from interlace.decoder.load import load_model, load_processor
from interlace.errors import InputError
from interlace.io import atomic_path, digest, folder_digest, write_json
from interlace.provenance import stamp
from interlace.scoring.batches import SampleBatches

CONVENTION = (
    "cos(x, y) of float32 vectors, real tokens only; x is the input of the window's first layer, y "
    "the input of the layer after the window, which includes what DeepStack adds between the two; "
    "after the last layer y is its raw output, before the final norm"
)
SIZES = (1, 2, 3)


def window_list(num_layers: int, sizes: Sequence[int]) -> list[tuple[int, int]]:
    """Return every (size, start), sizes as given and starts ascending; this is the W axis."""
    return [(size, start) for size in sizes for start in range(num_layers - size + 1)]


class WindowSums:
    """Sums cosine similarities over tokens while a model runs, in a `with` block.

    Hooks on the decoder layers see each layer's input; only as many of them as the longest window
    has layers are held at a time. Nothing is copied off the device before `take`.
    """

    def __init__(self, model: torch.nn.Module, sizes: Sequence[int] = SIZES) -> None:
        self._layers = decoder_layers(model)
        self._windows = window_list(len(self._layers), sizes)
        self._position = {window: i for i, window in enumerate(self._windows)}
        self._sizes = sizes
        self._handles: list[Any] = []
        self._recent: dict[int, torch.Tensor] = {}
        self._masks: torch.Tensor | None = None
        self._sums: torch.Tensor | None = None

    def start(self, masks_BT2: torch.Tensor) -> None:
        """Prepare for a batch; `masks_BT2` is 1 where a real token is of the modality, else 0."""
        self._masks = masks_BT2.float()
        shape = (masks_BT2.shape[0], len(self._windows), 2)
        self._sums = torch.zeros(shape, dtype=torch.float32, device=masks_BT2.device)

    def take(self) -> torch.Tensor:
        """Return the (B, W, 2) sums of the batch that ran since `start`, still on the device."""
        assert self._sums is not None
        sums, self._sums, self._masks = self._sums, None, None
        self._recent.clear()
        return sums

    def __enter__(self) -> "WindowSums":
        for index, layer in enumerate(self._layers):
            self._handles.append(
                layer.register_forward_pre_hook(self._before(index), with_kwargs=True)
            )
        self._handles.append(self._layers[-1].register_forward_hook(self._after_last))
        return self

    def __exit__(self, *_: object) -> None:
        for handle in self._handles:
            handle.remove()
        self._handles.clear()

    def _before(self, index: int) -> Any:
        def hook(_module: Any, args: tuple, kwargs: dict) -> None:
            self._see(index, args[0] if args else kwargs["hidden_states"])

        return hook

    def _after_last(self, _module: Any, _args: tuple, output: Any) -> None:
        self._see(len(self._layers), output[0] if isinstance(output, tuple) else output)

    def _see(self, boundary: int, hidden_BTD: torch.Tensor) -> None:
        """Score every window that ends before layer `boundary`, whose input this is."""
        assert self._sums is not None, "call start() before the model runs"
        unit_BTD = torch.nn.functional.normalize(hidden_BTD.float(), dim=-1)
        for size in self._sizes:
            if (start := boundary - size) >= 0:
                cosine_BT = (self._recent[start] * unit_BTD).sum(-1)
                self._sums[:, self._position[size, start]] = torch.einsum(
                    "bt,btm->bm", cosine_BT, self._masks
                )
        self._recent[boundary] = unit_BTD
        self._recent.pop(boundary - max(self._sizes), None)


def modality_masks(batch: dict[str, torch.Tensor], image_token_id: int | None) -> torch.Tensor:
    """Return (B, T, 2): 1 where a real token is text, and where it stands for a piece of image."""
    real = batch["attention_mask"].bool()
    visual = batch["input_ids"] == (-1 if image_token_id is None else image_token_id)
    return torch.stack([real & ~visual, real & visual], dim=-1)


@torch.inference_mode()
def window_sums(
    model: torch.nn.Module,
    batches: Iterator[dict[str, torch.Tensor]],
    sizes: Sequence[int] = SIZES,
) -> tuple[np.ndarray, np.ndarray]:
    """Return sums (N, W, 2) and token counts (N, 2) in float64 over all samples of `batches`.

    The batches are what `interlace.data.collate` makes; `labels` are not used. No logits are made.
    """
    image_token_id = getattr(model.config, "image_token_id", None)
    sums, counts = [], []
    with WindowSums(model, sizes) as recorder:
        for batch in batches:
            inputs = {key: v.to(model.device) for key, v in batch.items() if key != "labels"}
            masks_BT2 = modality_masks(inputs, image_token_id)
            recorder.start(masks_BT2)
            model.base_model(**inputs, use_cache=False)
            sums.append(recorder.take())
            counts.append(masks_BT2.sum(1))
    # The only wait for the device.
    return torch.cat(sums).double().cpu().numpy(), torch.cat(counts).double().cpu().numpy()


def score_windows(
    model_path: str | Path,
    samples: str | Path,
    out_dir: str | Path,
    settings: dict[str, Any],
    *,
    model_key: str,
    seed: int,
    config_digest: str | None = None,
) -> None:
    """Score all windows of the model on the calibration samples; write them to `out_dir`.

    `settings`: `batch_size`, `max_length` (tokens; longer samples are cut at the end),
    `min_pixels`, `max_pixels`, and optionally `sizes` (windows, 1, 2, 3), `dtype`, `device`,
    `attention`. Writes `windows.parquet` (a row per sample and window: sums and token counts, text
    and visual apart) and `pack<k>.json` (means over all samples). The model reads each sample
    whole: user and assistant turns. Raises `InputError` where no sample can be encoded or a score
    is not finite.
    """
    sizes = tuple(settings.get("sizes") or SIZES)
    device = settings.get("device") or ("cuda" if torch.cuda.is_available() else "cpu")
    records = load_records(samples, calibration_only=True)
    model = load_model(
        model_path,
        settings.get("dtype") or "float32",
        device,
        settings.get("attention") or "sdpa",
    )
    num_layers = len(decoder_layers(model))
    if max(sizes) > num_layers:
        raise InputError(
            f"scoring.sizes: {max(sizes)} layers in a window, the model has {num_layers}"
        )
    processor = load_processor(model_path, settings.get("min_pixels"), settings.get("max_pixels"))
    source = SampleBatches(
        records, processor, settings["batch_size"], settings.get("max_length"), "scoring.max_length"
    )
    sums, counts = window_sums(model, iter(source), sizes)
    if not np.isfinite(sums).all():
        bad = source.positions[int(np.argwhere(~np.isfinite(sums))[0, 0])]
        raise InputError(
            f"{model_path}: hidden states of sample {records.ids[bad]} are not finite; "
            "use a wider dtype or check the weights"
        )
    order = np.argsort(source.positions)
    kept = [source.positions[i] for i in order]
    sums, counts = sums[order], counts[order]
    provenance = stamp(
        "scores",
        config_digest=config_digest or digest(settings),
        seed=seed,
        num_samples=len(kept),
        model_revision=folder_digest(model_path, "*.safetensors"),
    )
    windows = window_list(num_layers, sizes)
    out_dir = Path(out_dir)
    with atomic_path(out_dir / "windows.parquet") as partial:
        ids, subsets = ([names[i] for i in kept] for names in (records.ids, records.subsets))
        pq.write_table(window_table(ids, subsets, windows, sums, counts), partial)
    for size in sizes:
        body = {
            "provenance": provenance,
            "model": model_key,
            "size": size,
            "num_layers": num_layers,
            "num_samples": len(kept),
            "num_tokens": {"text": int(counts[:, 0].sum()), "visual": int(counts[:, 1].sum())},
            "left_out": source.left_out,
            "text": "whole conversations, user and assistant turns",
            "convention": CONVENTION,
            "windows": pack(size, windows, sums, counts),
        }
        write_json(out_dir / f"pack{size}.json", body)


def window_table(
    ids: Sequence[str],
    subsets: Sequence[str],
    windows: Sequence[tuple[int, int]],
    sums: np.ndarray,
    counts: np.ndarray,
) -> pa.Table:
    """Return a row per sample and window with the (N, W, 2) sums and the (N, 2) token counts."""
    num_samples, num_windows = len(ids), len(windows)
    sample = np.repeat(np.arange(num_samples), num_windows)
    sizes, starts = np.array(windows, dtype=np.int16).T

    def by_sample(values: Sequence[str]) -> pa.Array:
        return pa.DictionaryArray.from_arrays(
            sample.astype(np.int32), pa.array(values, pa.string())
        )

    return pa.table(
        {
            "id": by_sample(ids),
            "subset": by_sample(subsets),
            "size": np.tile(sizes, num_samples),
            "start": np.tile(starts, num_samples),
            "text_sum": sums[:, :, 0].reshape(-1),
            "visual_sum": sums[:, :, 1].reshape(-1),
            "text_tokens": counts[sample, 0].astype(np.int32),
            "visual_tokens": counts[sample, 1].astype(np.int32),
        }
    )


def pack(
    size: int, windows: Sequence[tuple[int, int]], sums: np.ndarray, counts: np.ndarray
) -> list[dict[str, Any]]:
    """Return the means of every window of `size`, starts ascending.

    `token_mean` is over all tokens of all samples (the paper's), `sample_mean` the mean over
    samples of each one's token mean (the released code's); `text_mean` and `visual_mean` are over
    the tokens of one modality, None where there is none.
    """
    result = []
    for index, (window_size, start) in enumerate(windows):
        if window_size != size:
            continue
        text, visual = sums[:, index, 0], sums[:, index, 1]
        text_tokens, visual_tokens = counts.sum(0)
        result.append(
            {
                "start": start,
                "token_mean": float((text + visual).sum() / (text_tokens + visual_tokens)),
                "sample_mean": float(((text + visual) / counts.sum(1)).mean()),
                "text_mean": float(text.sum() / text_tokens) if text_tokens else None,
                "visual_mean": float(visual.sum() / visual_tokens) if visual_tokens else None,
            }
        )
    return result
