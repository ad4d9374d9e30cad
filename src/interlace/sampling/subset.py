"""One subset from its row groups to the files of its sample."""

import itertools
from collections import Counter
from collections.abc import Iterator
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from interlace.io import atomic_path, digest, remove, write_json
from interlace.progress import track
from interlace.sampling import plan
from interlace.sampling.draw import Draw, groups_of
from interlace.sampling.fetch import Fetcher, Key
from interlace.sampling.footers import SubsetFooters
from interlace.sampling.ranges import RangeReader
from interlace.sampling.rows import REASONS, dropped_fields, examine, kept_schema
from interlace.sampling.settings import complete
from interlace.sampling.source import open_source

GROUP_BYTES = 2 * 1024**2  # of a row group of the samples: small, since training reads at random
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
    row is replaced by a further draw (`interlace.sampling.draw.Draw`) until the count is met or the
    subset is exhausted. The files are the same for any number of `workers`, and however often it was killed;
    what was fetched until then lies in the folder `spool`, which is removed at the end.

    Raises `InputError` where the source fails for good or has changed since it was planned.
    """
    settings = complete(settings)
    body, footers = plan.load(planned, subset)
    source = open_source(body["address"], settings["retries"])
    reader = RangeReader(source.filesystem, settings["retries"])
    target = body["subsets"][subset]["target"]
    sizes = footers.groups["rows"]
    draw = Draw(sizes, settings["unit"], seed, subset)
    mark = digest(
        [body["address"], body["revision"], target, settings["unit"], seed, _fingerprint(footers)]
    )
    for stale in spool.glob("*"):
        if stale.name != mark:
            remove(stale)
    windows = _windows(draw, footers.num_rows, target, settings["unit"])
    with (
        Fetcher(source, footers, windows, reader, spool / mark, settings["workers"]) as fetch,
        atomic_path(out, directory=True) as partial,
    ):
        walk = _Walk(footers, settings, fetch)
        with _Writer(partial / FILE, kept_schema(footers.schema, settings)) as writer:
            walk.run(draw, windows, target, writer)
        table = pa.Table.from_pylist(walk.entries(), schema=MANIFEST)
        pq.write_table(table, partial / "manifest.parquet")
        write_json(
            partial / "counts.json", _counts(footers, target, walk, partial / FILE, settings)
        )
    print(f"{subset}: {reader.requests} requests, {reader.failed} of them tried again, "
          f"{reader.received} bytes received", flush=True)  # fmt: skip
    remove(spool)


def _fingerprint(footers: SubsetFooters) -> str:
    columns = ("shard", "row_group", "rows", "start", "length", "digest")
    return digest([[str(v) for v in footers.groups[name]] for name in columns])


def _windows(draw: Draw, num_rows: int, target: int, unit: str) -> np.ndarray:
    """Return the window of each row; rows of one window and row group are spooled together.

    By `row` every row group is touched by few rows: spooled are those that replace a quarter of the
    sample, then twice as many each time. Else a row group's rows are needed together.
    """
    if unit != "row":
        return np.zeros(num_rows, np.int64)
    limits = [target + target // 4 + 32]
    while limits[-1] < num_rows:
        limits.append(2 * limits[-1])
    return np.searchsorted(limits, draw.ranks(), side="right")


class _Walk:
    """Draws rows and looks at them until enough are kept; remembers what it saw."""

    def __init__(self, footers: SubsetFooters, settings: dict[str, Any], fetch: Fetcher) -> None:
        self._footers, self._settings, self._fetch = footers, settings, fetch
        self._groups = footers.groups
        self._starts = np.cumsum(self._groups["rows"]) - self._groups["rows"]
        self._seen: list[dict[str, Any]] = []  # an entry per row, `ids` in place of `id`
        self.fetched: set[Key] = set()
        self.kept = 0

    def run(self, draw: Draw, windows: np.ndarray, target: int, writer: "_Writer") -> None:
        """Take as many rows as are missing, then as many as were rejected, and so on."""
        while self.kept < target and len(drawn := draw.take(target - self.kept)):
            ranks = dict(zip(drawn.tolist(), itertools.count(len(self._seen))))
            # Ascending, so that a row group is read once a round and a file in one direction.
            for group, number, values in self._rows(np.sort(drawn), windows):
                self._take(group, number, values, ranks[int(self._starts[group]) + number], writer)

    def entries(self) -> list[dict[str, Any]]:
        """Return the manifest's rows, in drawing order; one for each sample made of a row."""
        return [
            {**entry, "id": name, "num_chars": num_chars, "row_bytes": row_bytes}
            for entry in sorted(self._seen, key=lambda entry: entry["draw"])
            for name, num_chars, row_bytes in entry["ids"]
        ]

    @property
    def rows(self) -> list[dict[str, Any]]:
        """What became of each drawn row."""
        return self._seen

    def _rows(self, rows: np.ndarray, windows: np.ndarray) -> Iterator[tuple[int, int, Any]]:
        """Yield (row group, row within it, one-row table or why it is unreadable) of `rows`."""
        groups = groups_of(rows, self._groups["rows"])
        keys = list(zip(groups.tolist(), windows[rows].tolist(), strict=True))
        loaded = self._load(sorted(set(keys)))
        pairs = zip(rows.tolist(), keys, strict=True)
        for group, members in itertools.groupby(pairs, key=lambda pair: pair[1][0]):
            members = list(members)
            tables = dict(next(loaded) for _ in {key for _, key in members})
            places = {key: self._fetch.spooled_rows(key) for key in tables}
            for row, key in members:
                number, values = row - int(self._starts[group]), tables[key]
                if isinstance(values, pa.Table):
                    values = values.slice(int(np.searchsorted(places[key], number)), 1)
                yield group, number, values
        for _ in loaded:  # exhausted, so that the progress reports its end
            raise AssertionError("a row group that no row asked for")

    def _load(self, keys: list[Key]) -> Iterator[tuple[Key, pa.Table | str]]:
        new = [key for key in keys if key not in self.fetched]
        self.fetched.update(new)
        lengths = self._groups["length"] / 1e6
        if not new:
            return self._fetch.fetch(keys)
        return track(
            self._fetch.fetch(keys), f"{self._footers.name}: fetching",
            total=float(sum(lengths[key[0]] for key in keys)), unit="MB",
            amount=lambda item: lengths[item[0][0]],
        )  # fmt: skip

    def _take(self, group: int, number: int, values: Any, rank: int, writer: "_Writer") -> None:
        shard = str(self._groups["shard"][group])
        row_group = int(self._groups["row_group"][group])
        stem = PurePosixPath(shard).with_suffix("")
        name = f"{self._footers.name}/{stem}/{row_group}/{number}"
        place = {
            "subset": self._footers.name, "shard": shard, "row_group": row_group, "row": number,
            "draw": rank,
        }  # fmt: skip
        if isinstance(values, str):
            entry = {"status": "rejected", "reason": "unreadable_row_group", "detail": values}
            self._seen.append(
                dict.fromkeys(MANIFEST.names) | entry | place | {"ids": [(name, None, None)]}
            )
            return
        verdict = examine(values, self._settings)
        ids = [(name, verdict.entry["num_chars"], None)]
        if verdict.rows:
            named = [name + suffix for suffix in verdict.suffixes]
            row_bytes = [row.nbytes for row in verdict.rows]
            ids = list(zip(named, verdict.num_chars, row_bytes, strict=True))
            self.kept += 1
        for (row_name, *_), row in zip(ids, verdict.rows, strict=False):
            writer.add(row, row_name)
        self._seen.append(verdict.entry | place | {"ids": ids})


class _Writer:
    """Gathers one-row tables into one Parquet file of row groups of about `GROUP_BYTES`."""

    def __init__(self, path: Path, schema: pa.Schema) -> None:
        """Write `path`; the columns are those of `schema` and `id`."""
        self._path = path
        self._schema = schema
        self._file: pq.ParquetWriter | None = None
        self._rows: list[pa.Table] = []
        self._ids: list[str] = []
        self._bytes = 0

    def __enter__(self) -> "_Writer":
        return self

    def __exit__(self, *error: object) -> None:
        if error == (None, None, None):
            self._flush()
        if self._file is not None:
            self._file.close()

    def add(self, values: pa.Table, name: str) -> None:
        """Append one row under the id `name`."""
        self._rows.append(values)
        self._ids.append(name)
        self._bytes += values.nbytes
        if self._bytes >= GROUP_BYTES:
            self._flush()

    def _flush(self) -> None:
        if not self._rows:
            return
        tables = [self._schema.empty_table(), *self._rows]
        table = pa.concat_tables(tables, promote_options="permissive").cast(self._schema)
        table = table.append_column("id", pa.array(self._ids, pa.string()))
        if self._file is None:
            self._file = pq.ParquetWriter(self._path, table.schema)
        self._file.write_table(table)
        self._rows, self._ids, self._bytes = [], [], 0


def _counts(
    footers: SubsetFooters, target: int, walk: _Walk, file: Path, settings: dict[str, Any]
) -> dict[str, Any]:
    """Return the numbers of one subset; bytes are those of the ranges, each once, not of retries."""
    kept = [row for row in walk.rows if row["status"] == "kept"]
    reasons = Counter(row["reason"] for row in walk.rows if row["status"] == "rejected")
    touched = np.array(sorted({group for group, _ in walk.fetched}), np.int64)
    shards = dict(
        zip(footers.groups["shard"][touched], footers.groups["footer"][touched], strict=True)
    )
    in_groups = sum(int(footers.groups["length"][group]) for group, _ in walk.fetched)
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
        "row_groups": len(touched),
        "bytes_fetched": in_groups + int(sum(shards.values())),
        "bytes_kept": file.stat().st_size if file.exists() else 0,
    }
