"""Chunks of samples: what was scored piece by piece put together again. No torch.

The calibration samples are cut by index into chunks of `CHUNK`, and a batch never spans two. So a
run in one go, one that was killed and taken up again, and several shards merged are equal bit for
bit (on the same kind of device).
"""

import shutil
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from interlace.data.chat import load_records
from interlace.errors import InputError
from interlace.io import digest
from interlace.provenance import stamp
from interlace.scoring.left_out import check_left_out
from interlace.scoring.packs import write_packs
from interlace.scoring.store import Windows, read_windows, write_windows

CHUNK = 256


def num_chunks(num_samples: int) -> int:
    """Return how many chunks `num_samples` calibration samples make."""
    return -(-num_samples // CHUNK)


def merge_shards(
    shards: Sequence[str | Path],
    samples: str | Path,
    out_dir: str | Path,
    *,
    parts: str | Path,
    seed: int,
) -> None:
    """Write `windows.parquet` and the packs of `out_dir` from all shards; remove `parts`.

    Raises `InputError` where the shards are not of the same run or not all of it, and where no
    sample, or none of those with images, could be encoded.
    """
    tables = [read_windows(path) for path in shards]
    runs = {table.info.get("run") for table in tables}
    chunks = sorted(chunk for table in tables for chunk, _ in table.info.get("chunks", ()))
    wanted = num_chunks(len(load_records(samples, calibration_only=True)))
    if len(runs) != 1 or None in runs or chunks != list(range(wanted)):
        raise InputError(
            f"{Path(shards[0]).parent}: the shards are not one whole run over these samples; "
            "delete that folder and score again"
        )
    merged = join_chunks(tables)
    pictured = bool(merged.counts[:, 1].any())
    check_left_out("scoring.max_length", merged.info["left_out"], len(merged.ids), pictured)
    info = {key: value for key, value in merged.info.items() if key not in ("run", "chunks")}
    info["provenance"] = stamp(
        "scores",
        config_digest=digest(info["settings"]),
        seed=seed,
        num_samples=len(merged.ids),
        model_revision=info["model_digest"],
    )
    windows = replace(merged, info=info)
    out_dir = Path(out_dir)
    write_packs(out_dir, windows)
    write_windows(out_dir / "windows.parquet", windows)
    shutil.rmtree(parts, ignore_errors=True)


def join_chunks(tables: Sequence[Windows]) -> Windows:
    """Return the chunks of all `tables` in their order; everything else is the first one's."""
    pieces = []
    for table in tables:
        start = 0
        for chunk, rows in table.info["chunks"]:
            pieces.append((chunk, table, slice(start, start + rows)))
            start += rows
    pieces.sort(key=lambda piece: piece[0])
    left_out = [entry for table in tables for entry in table.info["left_out"]]
    first = tables[0]
    nothing = slice(0, 0)
    parts = [(first, nothing), *((table, rows) for _, table, rows in pieces)]
    assert all(table.windows == first.windows for table in tables)
    assert all(table.angles is not None for table in tables)
    return Windows(
        ids=[name for table, rows in parts for name in table.ids[rows]],
        subsets=[name for table, rows in parts for name in table.subsets[rows]],
        windows=first.windows,
        sums=np.concatenate([table.sums[rows] for table, rows in parts]),
        counts=np.concatenate([table.counts[rows] for table, rows in parts]),
        angles=np.concatenate([table.angles[rows] for table, rows in parts]),
        info=first.info
        | {
            "chunks": [[chunk, rows.stop - rows.start] for chunk, _, rows in pieces],
            "left_out": sorted(left_out, key=lambda entry: entry["id"]),
        },
    )
