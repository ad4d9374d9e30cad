"""The scoring pass: chunk after chunk, so that it can be taken up again and shared out over jobs."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from interlace.data.chat import SampleDataset, load_records
from interlace.decoder.layers import num_layers
from interlace.decoder.load import default_device, load_model, load_processor
from interlace.errors import InputError
from interlace.io import digest
from interlace.provenance import versions
from interlace.scoring.batches import SampleBatches
from interlace.scoring.chunks import CHUNK, join_chunks, merge_shards, num_chunks
from interlace.scoring.similarity import CONVENTION, WindowRecorder, run_batches
from interlace.scoring.store import (
    Windows,
    longest_window,
    read_windows,
    window_list,
    write_windows,
)
from interlace.stamps import configuration_digest, file_stamps, weights_record

# What the numbers depend on, besides weights and samples.
SETTINGS = (
    "batch_tokens", "max_length", "max_window", "text", "min_pixels", "max_pixels", "dtype",
)  # fmt: skip


def score_shard(
    model_path: str | Path,
    samples: str | Path,
    out: str | Path,
    settings: dict[str, Any],
    *,
    model_key: str,
    parts: str | Path,
    shard: int = 0,
    num_shards: int = 1,
    workers: int = 0,
) -> None:
    """Score the chunks i with i % num_shards == shard; write them to `out` (Parquet).

    `settings`: `batch_tokens` (per forward pass, padding included), `max_length` (tokens),
    `min_pixels`, `max_pixels`, and optionally `text` (`conversation` or `prompt`), `max_window`
    (layers in the longest window), `dtype`, `device`. Every chunk done is kept below `parts`, in a
    folder named after all that its numbers depend on, so that a killed run goes on after its last
    chunk. Raises `InputError` where a score is not finite.
    """
    device = torch.device(default_device(settings))
    used = {key: settings.get(key) for key in SETTINGS}
    used |= {"text": used["text"] or "conversation", "dtype": used["dtype"] or "float32"}
    used["device"] = device.type
    depth = num_layers(model_path)
    used["max_window"] = longest_window(depth, used["max_window"])
    records = load_records(samples, calibration_only=True)
    weights = weights_record(model_path)
    info: dict[str, Any] = {
        "num_layers": depth,
        "model": model_key,
        "model_digest": weights["model_digest"],
        "text": used["text"],
        "counts_known": True,
        "convention": CONVENTION,
        "settings": used,
        "left_out": [],
    }
    # Stamps tell one drawing of the samples from another without reading their images.
    drawn = [records.ids, file_stamps(samples, "*/*.parquet")]
    info["run"] = digest([info, configuration_digest(model_path), drawn, CHUNK, versions()])
    info["model_files"] = weights["model_files"]
    folder = Path(parts) / info["run"]
    mine = range(shard, num_chunks(len(records)), num_shards)
    todo = [chunk for chunk in mine if not _part(folder, chunk).is_file()]
    if todo:
        if len(todo) < len(mine):
            print(f"{len(mine) - len(todo)} of {len(mine)} chunks are there, going on", flush=True)
        model = load_model(model_path, used["dtype"], device)
        processor = load_processor(model_path, used["min_pixels"], used["max_pixels"])
        _score_chunks(model, processor, records, todo, folder, info, workers)
    windows = window_list(depth, range(1, used["max_window"] + 1))
    empty = Windows(
        [], [], windows, np.zeros((0, len(windows), 2)), np.zeros((0, 2)),
        np.zeros((0, len(windows))), info | {"chunks": []},
    )  # fmt: skip
    write_windows(
        out, join_chunks([empty, *(read_windows(_part(folder, chunk)) for chunk in mine)])
    )


def _score_chunks(
    model: torch.nn.Module,
    processor: Any,
    records: SampleDataset,
    chunks: Sequence[int],
    folder: Path,
    info: dict[str, Any],
    workers: int,
) -> None:
    used = info["settings"]
    indices = [
        index
        for chunk in chunks
        for index in range(chunk * CHUNK, min((chunk + 1) * CHUNK, len(records)))
    ]
    source = SampleBatches(
        records,
        processor,
        used["batch_tokens"],
        used["max_length"],
        "scoring.max_length",
        indices,
        used["text"],
        workers,
    )
    with WindowRecorder(model, used["max_window"]) as recorder:
        for chunk, batches in zip(chunks, source.chunks(CHUNK), strict=True):
            first, left_out = len(source.positions), len(source.left_out)
            sums, counts, angles = run_batches(model, batches, recorder)
            positions = source.positions[first:]
            if not np.isfinite(sums).all():
                bad = positions[int(np.argwhere(~np.isfinite(sums))[0, 0])]
                raise InputError(
                    f"{model.config.name_or_path}: hidden states of sample {records.ids[bad]} are "
                    "not finite; use a wider dtype or check the weights"
                )
            order = np.argsort(positions)
            ids, subsets = (
                [names[positions[i]] for i in order] for names in (records.ids, records.subsets)
            )
            scored = Windows(
                ids,
                subsets,
                recorder.windows,
                sums[order],
                counts[order],
                angles[order],
                info | {"chunks": [[chunk, len(ids)]], "left_out": source.left_out[left_out:]},
            )
            write_windows(_part(folder, chunk), scored)


def score_windows(
    model_path: str | Path,
    samples: str | Path,
    out_dir: str | Path,
    settings: dict[str, Any],
    *,
    model_key: str,
    seed: int,
) -> None:
    """Score everything in this process: one shard, merged. See `score_shard` and `merge_shards`."""
    parts = Path(out_dir) / "parts"
    shard = parts / "shard.parquet"
    score_shard(model_path, samples, shard, settings, model_key=model_key, parts=parts)
    merge_shards([shard], samples, out_dir, parts=parts, seed=seed)


def _part(folder: Path, chunk: int) -> Path:
    return folder / f"chunk{chunk:06d}.parquet"
