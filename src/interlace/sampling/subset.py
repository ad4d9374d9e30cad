"""One subset from its row groups to the files of its sample."""

from collections import Counter
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from interlace.io import atomic_path, claimed, digest, disk_full_told, remove, write_json
from interlace.sampling import plan
from interlace.sampling.arc import rows_in_order, seeded
from interlace.sampling.draw import Draw
from interlace.sampling.fetch import Fetcher
from interlace.sampling.index import SubsetFooters
from interlace.sampling.ranges import RangeReader
from interlace.sampling.rows import REASONS, dropped_fields, kept_schema
from interlace.sampling.settings import complete
from interlace.sampling.source import open_source
from interlace.sampling.walk import Walk
from interlace.sampling.writer import RowWriter

FILE = "train-00000-of-00001.parquet"

MANIFEST = pa.schema(
    [
        ("id", pa.string()),
        ("subset", pa.string()),
        ("shard", pa.string()),
        ("row_group", pa.int32()),
        ("row", pa.int32()),  # within the row group
        ("draw", pa.int64()),  # how many rows of the subset were drawn before it
        ("status", pa.string()),  # kept | rejected
        ("reason", pa.string()),  # one of REASONS, null where kept
        ("detail", pa.string()),
        ("num_images", pa.int32()),
        ("num_turns", pa.int32()),
        ("num_chars", pa.int64()),
        ("image_sizes", pa.list_(pa.list_(pa.int32()))),  # [width, height] in pixels
        ("image_bytes", pa.list_(pa.int64())),  # of each image, encoded
        ("row_bytes", pa.int64()),  # of the written row in Arrow's layout; null where rejected
    ]
)


def draw_subset(
    planned: Path, subset: str, out: Path, spool: Path, settings: dict[str, Any], seed: int
) -> None:
    """Write the sample of one subset to the folder `out`, as the plan in the folder `planned` has it.

    `train-00000-of-00001.parquet` holds the kept rows (the original columns and `id`),
    `manifest.parquet` a row per sample and per rejected row, `counts.json` the numbers. A rejected
    row is replaced by a further one (`interlace.sampling.draw`, by `row_group`
    `interlace.sampling.arc`) until the count is met or the subset is exhausted. The files are the
    same for any number of `workers`, and however often it was killed; what was fetched until then
    lies in the folder `spool`, which is removed at the end.

    Raises `InputError` where the source fails for good or has changed since it was planned, where
    the disk is full and where another process draws to the same place.
    """
    way_out = (
        "what was fetched is kept; free some space, or lower data.fraction or data.workers, and run "
        "again"
    )
    with disk_full_told(f"{subset}: {out}", way_out), claimed(spool):
        _draw_subset(planned, subset, out, spool, complete(settings), seed)


def _draw_subset(
    planned: Path, subset: str, out: Path, spool: Path, settings: dict[str, Any], seed: int
) -> None:
    body, footers = plan.load(planned, subset)
    source = open_source(body["address"], settings["retries"])
    reader = RangeReader(source.filesystem, settings["retries"])
    target = body["subsets"][subset]["target"]
    sizes = footers.groups["rows"]
    unit = settings["unit"]
    draw = Draw(sizes, unit, seed, subset) if unit != "row_group" else None
    mark = digest([body["address"], body["revision"], target, unit, seed, footers.fingerprint])
    for stale in spool.glob("*"):
        if stale.name != mark:
            remove(stale)
    windows = _windows(draw if unit == "row" else None, footers.num_rows, target)
    workers = settings["workers"]
    with (
        Fetcher(source, footers, windows, reader, planned, spool / mark, workers) as fetch,
        atomic_path(out, directory=True) as folder,
    ):
        with RowWriter(folder / FILE, kept_schema(footers.schema, settings)) as writer:
            walk = Walk(footers, settings, fetch, writer.add)
            if draw is not None:
                walk.draw(draw, windows, target)
            else:
                arc = seeded(sizes, footers.sure(settings), target, seed, subset)
                walk.follow(arc, partial(rows_in_order, seed=seed, subset=subset))
        table = pa.Table.from_pylist(walk.entries(), schema=MANIFEST)
        pq.write_table(table, folder / "manifest.parquet")
        counts = _counts(footers, target, walk, folder / FILE, body["revision"], settings)
        write_json(folder / "counts.json", counts)
    print(f"{subset}: {reader.requests} requests, {reader.failed} of them tried again, "
          f"{reader.received} bytes received", flush=True)  # fmt: skip
    remove(spool)


def _windows(draw: Draw | None, num_rows: int, target: int) -> np.ndarray:
    """Return the window of each row; rows of one window and row group are spooled together.

    By `row` every row group is touched by few rows of its `draw`: spooled are those that replace a
    quarter of the sample, then twice as many each time. Without a `draw` a row group's rows are
    needed together.
    """
    if draw is None:
        return np.zeros(num_rows, np.int64)
    limits = [target + target // 4 + 32]
    while limits[-1] < num_rows:
        limits.append(2 * limits[-1])
    return np.searchsorted(limits, draw.ranks(), side="right")


def _counts(
    footers: SubsetFooters,
    target: int,
    walk: Walk,
    file: Path,
    revision: str | None,
    settings: dict[str, Any],
) -> dict[str, Any]:
    """Return the numbers of one subset; bytes are those of the ranges, each once, not of retries."""
    kept = [row for row in walk.rows if row["status"] == "kept"]
    reasons = Counter(row["reason"] for row in walk.rows if row["status"] == "rejected")
    fetched = np.array([group for group, _ in walk.fetched], np.int64)
    return {
        "rows": footers.num_rows,
        "target": target,
        "drawn": len(walk.rows),
        "kept": len(kept),
        "records": sum(len(row["ids"]) for row in kept),
        "rejected": {reason: reasons[reason] for reason in REASONS},
        "short": target - len(kept),
        "cut": sum(row["detail"] is not None for row in kept),
        "images": sum(row["num_images"] for row in kept),
        "dropped_fields": dropped_fields(footers.schema, settings),
        "row_groups": len(np.unique(fetched)),
        "bytes_fetched": footers.bytes_of(fetched, revision),
        "bytes_kept": file.stat().st_size if file.exists() else 0,
    }
