"""windows.parquet: what every sample says about every window of layers. No torch.

Shapes: N samples, W windows, 2 modalities (text, visual).
"""

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from interlace.errors import InputError
from interlace.io import atomic_path

MODALITIES = ("text", "visual")
_META = b"interlace"
_COUNTS = [f"{name}_tokens" for name in MODALITIES]
_SUMS = [f"{name}_sum" for name in MODALITIES]
_ANGLE = "last_token_angle"


def window_list(num_layers: int, sizes: Sequence[int]) -> list[tuple[int, int]]:
    """Return every (size, start), sizes as given and starts ascending; this is the W axis."""
    return [(size, start) for size in sizes for start in range(num_layers - size + 1)]


def longest_window(num_layers: int, max_window: int | None = None) -> int:
    """Return how many layers the longest window scored has.

    By default one more than a third of the layers: what a block of the most layers that a plan
    may drop, and the layer kept before it, needs (LLM-Streamline). At least 3 (a triplet), at most
    all layers. Raises `InputError` for a `max_window` outside of that.
    """
    if max_window is None:
        return min(num_layers, max(3, num_layers // 3 + 1))
    if not 3 <= max_window <= num_layers:
        raise InputError(
            f"scoring.max_window: {max_window}; with {num_layers} layers choose 3 to {num_layers}"
        )
    return max_window


@dataclass(frozen=True)
class Windows:
    """Per sample: cosine sums of every window over its text and visual tokens, and the counts.

    `sums` (N, W, 2) float64 and `counts` (N, 2); `angles` (N, W) is arccos of the cosine at the
    last real token over pi, in [0, 1], or None where it was not measured. `windows` are the W
    (size, start), `info` the metadata of the file: num_layers, model (its key), model_digest, text
    (`conversation` or `prompt`), counts_known, convention, settings, provenance, left_out.

    Where `info["counts_known"]` is false (imported per-sample means) a sample's sum is its mean,
    its counts are 1 and 0, and a window that is not there is NaN.
    """

    ids: list[str]
    subsets: list[str]
    windows: list[tuple[int, int]]
    sums: np.ndarray
    counts: np.ndarray
    angles: np.ndarray | None
    info: dict[str, Any]

    def __post_init__(self) -> None:
        num_samples, num_windows = len(self.ids), len(self.windows)
        assert len(self.subsets) == num_samples
        assert self.sums.shape == (num_samples, num_windows, 2), self.sums.shape
        assert self.counts.shape == (num_samples, 2), self.counts.shape
        assert self.angles is None or self.angles.shape == (num_samples, num_windows)


def write_windows(path: str | Path, windows: Windows) -> None:
    """Write `windows` as Parquet, a row per sample, in float32; atomically."""
    width = len(windows.windows)

    def vectors(values_NW: np.ndarray) -> pa.Array:
        flat = pa.array(np.ascontiguousarray(values_NW, dtype=np.float32).reshape(-1))
        return pa.FixedSizeListArray.from_arrays(flat, width)

    columns: dict[str, pa.Array] = {
        "id": pa.array(windows.ids, pa.string()),
        "subset": pa.array(windows.subsets, pa.string()),
    }
    for index, name in enumerate(_COUNTS):
        columns[name] = pa.array(windows.counts[:, index].astype(np.int32))
    for index, name in enumerate(_SUMS):
        columns[name] = vectors(windows.sums[:, :, index])
    if windows.angles is None:
        columns[_ANGLE] = pa.nulls(len(windows.ids), pa.list_(pa.float32(), width))
    else:
        columns[_ANGLE] = vectors(windows.angles)
    info = {**windows.info, "windows": [list(window) for window in windows.windows]}
    meta = {_META: json.dumps(info, sort_keys=True).encode()}
    with atomic_path(path) as partial:
        # Plain pages: dictionaries do not shrink floats that hardly repeat.
        pq.write_table(
            pa.table(columns).replace_schema_metadata(meta), partial, use_dictionary=False
        )


def window_means(
    sums_NW: np.ndarray, counts_N: np.ndarray
) -> tuple[list[float | None], list[float | None]]:
    """Return of each window the mean over all tokens, and the mean over samples of their means.

    `sums_NW` are cosine sums over the `counts_N` tokens of each sample; samples without tokens are
    left out. None for a window with a sum that is not finite, and where there are no tokens. The
    sums are exact (`math.fsum`), so that the order of the samples does not matter.
    """
    sums_NW, counts_N = sums_NW[counts_N > 0], counts_N[counts_N > 0]
    token_means: list[float | None] = [None] * sums_NW.shape[1]
    sample_means = list(token_means)
    for window, sums_N in enumerate(sums_NW.T):
        if len(counts_N) and np.isfinite(sums_N).all():
            token_means[window] = math.fsum(sums_N.tolist()) / math.fsum(counts_N)
            sample_means[window] = math.fsum((sums_N / counts_N).tolist()) / len(counts_N)
    return token_means, sample_means


def read_windows(path: str | Path) -> Windows:
    """Read what `write_windows` wrote; raises `InputError` for a file that is none."""
    path = Path(path)
    try:
        table = pq.read_table(path)
        info = json.loads(table.schema.metadata[_META])
        windows = [(int(size), int(start)) for size, start in info.pop("windows")]
        info["num_layers"] = int(info["num_layers"])
        _check(info, windows, table["id"].to_pylist())
        counts = np.stack([table[name].to_numpy() for name in _COUNTS], axis=-1).astype(np.float64)
        sums = np.stack([_vectors(table[name], len(windows)) for name in _SUMS], axis=-1)
        _check_counts(counts, sums, info["counts_known"], table["id"].to_pylist())
        angles = table[_ANGLE]
        return Windows(
            ids=table["id"].to_pylist(),
            subsets=table["subset"].to_pylist(),
            windows=windows,
            sums=sums,
            counts=counts,
            angles=None if angles.null_count else _vectors(angles, len(windows)),
            info=info,
        )
    except FileNotFoundError:
        raise InputError(f"{path}: no such file; run the stage `scores` first") from None
    except (pa.ArrowException, OSError, KeyError, TypeError, ValueError, AssertionError) as error:
        first = (str(error).splitlines() or [type(error).__name__])[0]
        raise InputError(
            f"{path}: not a file of window scores ({first}); delete it and score again"
        ) from None


def _check(info: dict[str, Any], windows: Sequence[tuple[int, int]], ids: Sequence[str]) -> None:
    """Raise ValueError for metadata that lack a key, and windows or samples that cannot be."""
    missing = [key for key in ("model", "model_digest", "text", "counts_known") if key not in info]
    if missing:
        raise ValueError(f"its metadata lack `{missing[0]}`")
    for size, start in windows:
        if not (size >= 1 and 0 <= start <= info["num_layers"] - size):
            raise ValueError(
                f"no window of {size} layers from {start} on in {info['num_layers']} layers"
            )
    for what, items in (("window (size, start)", windows), ("sample", ids)):
        if len(set(items)) != len(items):
            twice = next(item for item in items if items.count(item) > 1)
            raise ValueError(f"the {what} {twice} is there twice")


def _check_counts(
    counts_N2: np.ndarray, sums_NW2: np.ndarray, known: bool, ids: Sequence[str]
) -> None:
    """Raise ValueError for a negative count, and for a sum over no tokens that is not 0.

    Samples without tokens are in no mean: such a one would vanish from it. Imported scores may
    lack a window (NaN).
    """
    sums_at_none = (counts_N2 == 0)[:, None] & (sums_NW2 != 0)
    if not known:
        sums_at_none &= ~np.isnan(sums_NW2)
    bad_N2 = (counts_N2 < 0) | sums_at_none.any(1)
    if bad_N2.any():
        row, column = map(int, np.argwhere(bad_N2)[0])
        what = "a sum that is not 0" if counts_N2[row, column] == 0 else "scores"
        raise ValueError(
            f"the sample {ids[row]} has {what} over {counts_N2[row, column]:.0f} "
            f"{MODALITIES[column]} tokens"
        )


def _vectors(column: pa.ChunkedArray, width: int) -> np.ndarray:
    """Return a FixedSizeList<float32>[width] column as (N, width) float64."""
    if column.type != pa.list_(pa.float32(), width):
        raise ValueError(f"a column has type {column.type}, not {width} numbers a row")
    flat = column.combine_chunks().flatten().to_numpy(zero_copy_only=False)
    return flat.reshape(-1, width).astype(np.float64)
