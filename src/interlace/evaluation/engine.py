"""Predictions: in batches by default, or by VLMEvalKit's own loop, the reference.

Both use VLMEvalKit's prompts, image handling and decoding (`LocalQwen3VL`); greedy in float32 they
give the same strings.
"""

import contextlib
import json
import os
import pickle
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from PIL import Image

from interlace.evaluation.model import LocalQwen3VL
from interlace.io import digest
from interlace.progress import track

Inputs = dict[str, torch.Tensor]

# One row per image patch or image; everything else is one row per token and padded on the left.
_PER_IMAGE = ("pixel_values", "image_grid_thw")


class PredictionStore:
    """Predictions on disk, a JSON line per batch, so that a kill costs at most the batch at work."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.predictions: dict[str, str] = {}
        self.seconds = 0.0
        if path.exists():
            self._read()

    def _read(self) -> None:
        whole = 0
        with self.path.open("rb") as handle:
            for line in handle:
                if not line.endswith(b"\n"):
                    break
                batch = json.loads(line)
                self.predictions.update(batch["predictions"])
                self.seconds += batch["seconds"]
                whole += len(line)
        # A line without its end was being written when the process died.
        os.truncate(self.path, whole)

    def add(self, predictions: dict[str, str], seconds: float) -> None:
        """Append a batch and wait until it is on the disk."""
        line = json.dumps({"predictions": predictions, "seconds": seconds}, ensure_ascii=False)
        with self.path.open("a", encoding="utf-8") as handle:
            handle.write(line + "\n")
            handle.flush()
            os.fsync(handle.fileno())
        self.predictions.update(predictions)
        self.seconds += seconds


def predict_batched(
    model: LocalQwen3VL,
    dataset: Any,
    store: PredictionStore,
    *,
    batch_size: int,
    batch_tokens: int,
    seed: int,
) -> None:
    """Add to `store` a prediction for every row of `dataset` that it lacks.

    Longest rows first, at most `batch_size` rows and about `batch_tokens` prompt tokens (padding
    included) at a time. `seed` counts only when sampling; it is mixed with a batch's rows.
    """
    name = dataset.dataset_name
    messages = {}
    for position in range(len(dataset.data)):
        line = dataset.data.iloc[position]
        if str(line["index"]) not in store.predictions:
            messages[str(line["index"])] = model.message(dataset, line)
    order = sorted(messages, key=lambda index: _size(model, messages[index]), reverse=True)
    prepared = ((index, model.prepare(messages[index], name)) for index in order)
    done = track(prepared, f"{name} predictions", total=len(order), unit="rows")
    start = time.perf_counter()
    for batch in _batches(done, batch_size, batch_tokens):
        indices = [index for index, _ in batch]
        texts = _generate(model, [inputs for _, inputs in batch], _seed(seed, name, indices))
        end = time.perf_counter()
        store.add(dict(zip(indices, texts, strict=True)), end - start)
        start = end


def _size(model: LocalQwen3VL, message: list[dict[str, str]]) -> tuple[int, int]:
    """Return (pixels after the model's limits, characters): the order of prompt lengths, cheaply."""
    pixels, characters = 0, 0
    for part in message:
        if part["type"] != "image":
            characters += len(part["value"])
            continue
        with Image.open(part["value"]) as image:
            area = image.width * image.height
        area = max(area, model.min_pixels or 0)
        pixels += min(area, model.max_pixels or area)
    return pixels, characters


def _batches(
    rows: Iterator[tuple[str, Inputs]], batch_size: int, batch_tokens: int
) -> Iterator[list[tuple[str, Inputs]]]:
    batch: list[tuple[str, Inputs]] = []
    longest = 0
    for row in rows:
        length = row[1]["input_ids"].shape[1]
        full = len(batch) == batch_size or max(longest, length) * (len(batch) + 1) > batch_tokens
        if batch and full:
            yield batch
            batch, longest = [], 0
        batch.append(row)
        longest = max(longest, length)
    if batch:
        yield batch


def collate(samples: list[Inputs], pad_token_id: int) -> Inputs:
    """Return one batch from single prompts: tokens padded on the left, images one after another."""
    width = max(sample["input_ids"].shape[1] for sample in samples)
    batch = {}
    for key in dict.fromkeys(key for sample in samples for key in sample):
        values = [sample[key] for sample in samples if key in sample]
        if key not in _PER_IMAGE:
            fill = pad_token_id if key == "input_ids" else 0
            pads = [(width - value.shape[1], 0) for value in values]
            values = [
                torch.nn.functional.pad(value, pad, value=fill)
                for value, pad in zip(values, pads, strict=True)
            ]
        batch[key] = torch.cat(values)
    return batch


def _seed(seed: int, dataset: str, indices: list[str]) -> int:
    """Return a seed for one batch that does not depend on what was generated before it."""
    return int(digest([seed, dataset, indices]), 16) >> 1


@contextlib.contextmanager
def _seeded(model: LocalQwen3VL, seed: int) -> Iterator[None]:
    device = model.model.device
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        torch.manual_seed(seed)
        yield


def _generate(model: LocalQwen3VL, samples: list[Inputs], seed: int) -> list[str]:
    try:
        return _generate_once(model, samples, seed)
    except torch.cuda.OutOfMemoryError:
        if len(samples) == 1:
            raise
    torch.cuda.empty_cache()
    half = len(samples) // 2
    return _generate(model, samples[:half], seed) + _generate(model, samples[half:], seed)


def _generate_once(model: LocalQwen3VL, samples: list[Inputs], seed: int) -> list[str]:
    tokenizer = model.processor.tokenizer
    batch = collate(samples, tokenizer.pad_token_id)
    batch = {key: value.to(model.model.device) for key, value in batch.items()}
    with _seeded(model, seed):
        output = model.model.generate(**batch, **model.generate_kwargs)
    new = output[:, batch["input_ids"].shape[1] :]
    return tokenizer.batch_decode(new, skip_special_tokens=True, clean_up_tokenization_spaces=False)


def predict_vlmevalkit(
    model: LocalQwen3VL, dataset: Any, store: PredictionStore, *, seed: int
) -> None:
    """Fill `store` by VLMEvalKit's own loop: one row at a time, resumed from its own pickle."""
    from vlmeval.inference import infer_data_job
    from vlmeval.smp import load

    work = store.path.parent / "vlmevalkit"
    work.mkdir(exist_ok=True)
    for file in work.glob("*.pkl"):
        try:
            pickle.loads(file.read_bytes())
        except (pickle.UnpicklingError, EOFError):
            print(f"{file}: torn by an interrupted run, removed; its rows are generated again")
            file.unlink()
    start = time.perf_counter()
    with _seeded(model, seed):
        infer_data_job(model, work_dir=str(work), model_name="reference", dataset=dataset)
    table = load(str(work / f"reference_{dataset.dataset_name}.tsv"))
    texts = ["" if text != text else str(text) for text in table["prediction"]]
    predictions = dict(zip((str(index) for index in table["index"]), texts, strict=True))
    store.add(predictions, time.perf_counter() - start)
