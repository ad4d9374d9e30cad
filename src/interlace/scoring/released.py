"""Similarity scores in the layout of the authors' released code, out and in.

One file per window size k, `{MODEL}_{DATASET}_pack{k}_hidden_state_similarities.json`: an object
from the window's first layer (a string, 0-based) to a list with each sample's mean over its
tokens. The released code stops at start L-k-1, so that no window holds the last layer.
Layout and starts: pmadinei/Interlace, src/get_hidden_states.py. No torch.
"""

import json
import math
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np

from interlace.errors import InputError
from interlace.io import digest, file_digest, folder_digest, read_json, write_json
from interlace.provenance import stamp
from interlace.scoring.packs import write_packs
from interlace.scoring.released_files import SIZES, measured_as
from interlace.scoring.store import Windows, read_windows, window_list, write_windows
from interlace.selection.scores import COSINE_LIMIT
from interlace.stamps import WEIGHTS

SUBSET = "imported"  # the layout does not say which sample a mean is of


def export_released(windows_path: str | Path, out_dir: str | Path, names: list[str]) -> None:
    """Write the per-sample means of `windows_path` as the files `names` (sizes 1, 2, 3)."""
    windows = read_windows(windows_path)
    depth = windows.info["num_layers"]
    place = {window: index for index, window in enumerate(windows.windows)}
    means_NW = windows.sums.sum(2) / windows.counts.sum(1)[:, None]
    for size, name in zip(SIZES, names, strict=True):
        body = {
            str(start): means_NW[:, place[size, start]].tolist() for start in range(depth - size)
        }
        write_json(Path(out_dir) / name, body)


def import_released(
    files: list[str | Path],
    model_path: str | Path,
    out_dir: str | Path,
    *,
    model_key: str,
    num_layers: int,
) -> None:
    """Make `windows.parquet` and the packs of `out_dir` from three released `files`.

    Token counts are unknown: per-sample means are all there is. So are the weights that they were
    measured on; `imported_for` is the digest of those of `model_path`. Raises `InputError` for a
    file of another depth, a start that is missing or there twice, lists of unequal length and a
    mean that is not a number.
    """
    windows = window_list(num_layers, SIZES)
    means: dict[tuple[int, int], list[float]] = {}
    num_samples = None
    for size, file in zip(SIZES, files, strict=True):
        lists = _read(Path(file), size, num_layers)
        for start, values in lists.items():
            if num_samples is None:
                num_samples = len(values)
            if len(values) != num_samples:
                raise InputError(
                    f"{file}: start {start} has {len(values)} samples, others have {num_samples}; "
                    "all three files must be of the same samples"
                )
            means[size, start] = values
    assert num_samples is not None
    sums = np.full((num_samples, len(windows), 2), np.nan)
    for index, window in enumerate(windows):
        if window in means:
            # As the file will hold them, so that the packs agree with it to the last digit.
            sums[:, index, 0], sums[:, index, 1] = np.float32(means[window]), 0.0
    sources = {Path(file).name: file_digest(file) for file in files}
    info = {
        "num_layers": num_layers,
        "model": model_key,
        "model_digest": None,
        "imported_for": folder_digest(model_path, WEIGHTS),
        "text": "unknown",
        "counts_known": False,
        "convention": "per-sample means from files in the released code's layout; what text they "
        "are of, and what weights they were measured on, is not in them",
        "settings": {"imported": sources},
        "imported_from": sorted(
            {measured_as(file, size) for size, file in zip(SIZES, files, strict=True)}
        ),
        "provenance": stamp(
            "scores",
            config_digest=digest(sources),
            seed=None,
            num_samples=num_samples,
            model_revision=None,
        ),
        "left_out": [],
    }
    result = Windows(
        ids=[str(index) for index in range(num_samples)],
        subsets=[SUBSET] * num_samples,
        windows=windows,
        sums=sums,
        counts=np.tile([1.0, 0.0], (num_samples, 1)),
        angles=None,
        info=info,
    )
    out_dir = Path(out_dir)
    write_windows(out_dir / "windows.parquet", result)
    write_packs(out_dir, result)


def _read(file: Path, size: int, num_layers: int) -> dict[int, list[float]]:
    body = read_json(file)
    if not isinstance(body, dict) or not body or not all(map(_is_start, body)):
        raise InputError(f"{file}: not an object from start layers to lists of means")
    pairs = json.loads(file.read_text(encoding="utf-8"), object_pairs_hook=list)
    key, times = Counter(key for key, _ in pairs).most_common(1)[0]
    if times > 1:
        raise InputError(f"{file}: start {key} is there {times} times; keep one")
    starts = {int(key): values for key, values in body.items()}
    depth = max(starts) + 1 + size
    if depth != num_layers:
        raise InputError(
            f"{file}: its starts end at {max(starts)}, as for {depth} layers; the model has "
            f"{num_layers} (the last start is {num_layers - size - 1}): are these another model's?"
        )
    missing = sorted(set(range(num_layers - size)) - set(starts))
    if missing:
        raise InputError(f"{file}: start {missing[0]} is missing; measure it again")
    for start, values in sorted(starts.items()):
        if not isinstance(values, list) or not values:
            raise InputError(f"{file}: start {start} holds no list of means")
        for sample, value in enumerate(values):
            if not _is_mean(value):
                raise InputError(
                    f"{file}: sample {sample} of start {start} is {value}, not a cosine; "
                    "leave that sample out of all lists"
                )
    return starts


def _is_start(key: str) -> bool:
    """Return whether `key` is a number as `str` writes it: `01` would be start 1 a second time."""
    return key.isascii() and key.isdigit() and str(int(key)) == key


def _is_mean(value: Any) -> bool:
    number = isinstance(value, int | float) and not isinstance(value, bool)
    return number and math.isfinite(value) and abs(value) <= COSINE_LIMIT
