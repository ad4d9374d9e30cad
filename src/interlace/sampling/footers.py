"""What the footers of a data set's shards say, read by range requests and nothing else.

A footer is asked for by the last bytes of its file; if it is longer, once more. What is known is
saved every few shards, so that a killed reading goes on from there. A footer of no use is read once
more, in case the network spoiled it, and its refusal is never saved.
"""

import hashlib
import json
import os
import threading
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from interlace.io import atomic_path
from interlace.progress import track
from interlace.sampling.footer_parser import PARSER, pack, unpack
from interlace.sampling.ranges import RangeReader
from interlace.sampling.rows import schema_complaint
from interlace.sampling.schemas import unify
from interlace.sampling.source import Shard, Source

SAVE_EVERY = 32  # shards
FIRST_GUESS = 48 * 1024  # twenty row groups of FineVision's thirteen columns need about 40 kB
_ANY_SIZE = 2**62
_MAGIC = 8  # bytes of footer length and magic number at the end of a file

_GROUPS = pa.schema(
    [
        ("subset", pa.string()),
        ("shard", pa.string()),
        ("size", pa.int64()),  # of the shard, in bytes
        ("footer", pa.int64()),  # length with its trailing eight bytes; 0 where refused
        ("digest", pa.string()),  # of the footer; null where refused
        ("schema", pa.int32()),  # index into the file's list of schemas
        ("refused", pa.string()),  # why the shard is of no use; null where it is
        ("row_group", pa.int32()),  # -1 in the only row of a shard without row groups
        ("rows", pa.int64()),
        ("start", pa.int64()),  # byte in the shard
        ("length", pa.int64()),
        ("unpacked", pa.int64()),  # bytes that the footer announces
    ]
)


@dataclass(frozen=True)
class SubsetFooters:
    """The shards of one subset in the order of their names.

    `table` has the columns of the index, a row per row group, empty and refused ones among them.
    """

    name: str
    table: pa.Table
    schemas: tuple[pa.Schema, ...]

    @cached_property
    def groups(self) -> dict[str, np.ndarray]:
        """Columns of the row groups that can be drawn from: shard, row_group, rows, start, ..."""
        table = self.table.filter(
            pc.and_(
                pc.is_null(self.table["refused"]),
                pc.greater(self.table["rows"], 0),
            )
        )
        return {
            name: table[name].to_numpy(zero_copy_only=False)
            for name in ("shard", "size", "footer", "digest", "schema", "row_group", "rows",
                         "start", "length", "unpacked")
        }  # fmt: skip

    @property
    def num_rows(self) -> int:
        """Rows that can be drawn."""
        return int(self.groups["rows"].sum())

    @property
    def refused(self) -> dict[str, str]:
        """Shard -> why it is of no use."""
        bad = self.table.filter(pc.is_valid(self.table["refused"]))
        return dict(zip(bad["shard"].to_pylist(), bad["refused"].to_pylist(), strict=True))

    @property
    def num_shards(self) -> int:
        """Shards, refused ones among them."""
        return len(self.table["shard"].unique())

    @property
    def schema(self) -> pa.Schema:
        """The schema that holds the rows of every usable shard."""
        used = np.unique(self.groups["schema"])
        if not len(used):
            return pa.schema([])
        return unify([self.schemas[i] for i in self.by_rows(used)])[0]

    def by_rows(self, used: np.ndarray) -> list[int]:
        """Return schema numbers, those of most rows first, so that an odd shard can't outvote them."""
        rows = {int(i): int(self.groups["rows"][self.groups["schema"] == i].sum()) for i in used}
        return sorted(rows, key=lambda i: (-rows[i], i))


def read_footers(
    source: Source,
    shards: dict[str, list[Shard]],
    settings: dict[str, Any],
    reader: RangeReader,
    cache: Path,
) -> list[SubsetFooters]:
    """Return the footers of every subset; what `cache` has of the same files is not read again.

    `settings`: `workers` requests at a time, `format` for the columns that a shard needs. A shard
    that is no Parquet file, lacks a column or contradicts the others is refused, with the reason.
    Raises `InputError` where a shard cannot be fetched.
    """
    known = {name: _load(cache, name, files) for name, files in shards.items()}
    guesses = _Guesses()
    with ThreadPoolExecutor(settings["workers"]) as pool:
        read = partial(_read_shards, pool, partial(_read_shard, source, reader, guesses), cache)
        try:
            read(
                known,
                [s for name, files in shards.items() for s in files if s.name not in known[name]],
            )
            found = {name: _gather(known[name], files) for name, files in shards.items()}
            doubted = _doubted(found, shards, settings)
            if doubted:
                read(known, doubted)
                for name in {shard.subset for shard in doubted}:
                    found[name] = _gather(known[name], shards[name])
        except BaseException:
            pool.shutdown(cancel_futures=True)
            raise
    return [_refuse_unusable(subset, settings) for subset in found.values()]


def _read_shards(
    pool: ThreadPoolExecutor,
    read: Callable[[Shard], "_Footer"],
    cache: Path,
    known: dict[str, dict[str, "_Footer"]],
    shards: list[Shard],
) -> None:
    """Read footers into `known`, saving what is new every `SAVE_EVERY` shards and at the end."""
    if not shards:
        return
    unsaved: set[str] = set()
    done = as_completed([pool.submit(read, shard) for shard in shards])
    try:
        for number, future in enumerate(
            track(done, "reading footers", total=len(shards), unit="shard"), 1
        ):
            footer = future.result()
            known[footer.shard.subset][footer.shard.name] = footer
            unsaved.add(footer.shard.subset)
            if number % SAVE_EVERY == 0:
                while unsaved:
                    _save(cache, name := unsaved.pop(), known[name])
    finally:
        for name in unsaved:
            _save(cache, name, known[name])


def _doubted(
    found: dict[str, SubsetFooters], shards: dict[str, list[Shard]], settings: dict[str, Any]
) -> list[Shard]:
    """Return the shards whose footer is whole but of no use: a flipped letter may be all of it."""
    doubted = []
    for name, subset in found.items():
        why = _refuse_unusable(subset, settings).refused
        doubted += [s for s in shards[name] if s.name in why and s.name not in subset.refused]
    return doubted


def save_index(path: Path, subsets: Iterable[SubsetFooters]) -> None:
    """Write footers as one Parquet file, sorted by subset as they come, atomically."""
    tables, schemas = [], {}
    for subset in subsets:
        numbers = [schemas.setdefault(pack(s), len(schemas)) for s in subset.schemas]
        column = subset.table["schema"].to_numpy()
        mapped = np.array([*numbers, -1])[column] if len(column) else column
        place = subset.table.schema.get_field_index("schema")
        tables.append(
            subset.table.set_column(place, _GROUPS.field("schema"), pa.array(mapped, pa.int32()))
        )
    table = pa.concat_tables([_GROUPS.empty_table(), *tables])
    table = table.replace_schema_metadata({"schemas": json.dumps(list(schemas))})
    with atomic_path(path) as partial:
        pq.write_table(table, partial, row_group_size=16 * 1024, compression="zstd")


def load_index(path: Path, subset: str | None = None) -> list[SubsetFooters]:
    """Return the footers in a file of `save_index`, of one subset or of all."""
    filters = [("subset", "==", subset)] if subset is not None else None
    table = pq.read_table(path, filters=filters)
    packed = json.loads((pq.read_schema(path).metadata or {})[b"schemas"])
    schemas = tuple(unpack(text) for text in packed)
    table = table.replace_schema_metadata(None)
    names = table["subset"].to_pylist() if subset is None else []
    bounds = [i for i in range(len(names)) if i == 0 or names[i] != names[i - 1]] or [0]
    return [
        SubsetFooters(table["subset"][a].as_py(), table.slice(a, b - a), schemas)
        for a, b in zip(bounds, [*bounds[1:], len(table)], strict=True)
        if b > a
    ]


# -- one shard ----------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Footer:
    shard: Shard
    refused: str | None = None
    length: int = 0
    digest: str | None = None
    schema: str = ""
    groups: np.ndarray | None = None  # (row groups, 4): rows, start, length, unpacked


class _Guesses:
    """How long the next footer of a subset will be, from those before it."""

    def __init__(self) -> None:
        self._longest: dict[str, int] = {}
        self._lock = threading.Lock()

    def of(self, subset: str) -> int:
        longest = self._longest.get(subset)
        return FIRST_GUESS if longest is None else longest + longest // 16

    def learn(self, subset: str, length: int) -> None:
        with self._lock:
            self._longest[subset] = max(length, self._longest.get(subset, 0))


def _read_shard(source: Source, reader: RangeReader, guesses: _Guesses, shard: Shard) -> _Footer:
    """Read a footer; one of no use is read once more before it is refused."""
    if shard.size < 12:
        return _Footer(shard, f"truncated or not Parquet ({shard.size} bytes)")
    path = source.path(shard.subset, shard.name)
    found = _read_once(path, reader, guesses, shard)
    return _read_once(path, reader, guesses, shard) if found.refused is not None else found


def _read_once(path: str, reader: RangeReader, guesses: _Guesses, shard: Shard) -> _Footer:
    asked = min(shard.size, max(guesses.of(shard.subset), _MAGIC))
    tail = reader.read(path, shard.size - asked, asked)
    length = int.from_bytes(tail[-8:-4], "little") + _MAGIC
    if tail[-4:] != b"PAR1" or length > shard.size:
        return _Footer(shard, "truncated or not Parquet (it does not end in a footer)")
    if length > asked:
        tail = reader.read(path, shard.size - length, length - asked) + tail
    footer = tail[-length:]
    parsed = PARSER.parse(footer, shard.size)
    if parsed.refused is not None:
        return _Footer(shard, parsed.refused)
    guesses.learn(shard.subset, length)
    return _Footer(shard, None, length, footer_digest(footer), parsed.schema, parsed.groups)


def footer_digest(footer: bytes) -> str:
    """Return what tells a footer from any other, spoiled or of another version of its file."""
    return hashlib.blake2b(footer, digest_size=8).hexdigest()


def fetch_footer(
    reader: RangeReader, path: str, size: int, length: int, digest: str
) -> bytes | None:
    """Return the footer that was planned with, or None if the file's is another.

    `size`: of the file; `length`, `digest`: of the footer. Bytes that differ are read once more.
    """
    for _ in range(2):
        footer = reader.read(path, size - length, length)
        if footer_digest(footer) == digest:
            return footer
    return None


def parse_footer(footer: bytes) -> pq.FileMetaData:
    """Return the metadata in a file's last bytes; the file before them is not needed.

    Raises `OSError` for bytes that are none or that the reader would not survive.
    """
    parsed = PARSER.parse(footer, _ANY_SIZE)
    if parsed.refused is not None:
        raise OSError(parsed.refused)
    return pq.read_metadata(pa.BufferReader(b"PAR1" + footer))


def _gather(known: dict[str, _Footer], files: list[Shard]) -> SubsetFooters:
    name, footers = files[0].subset, [known[shard.name] for shard in files]
    schemas: dict[str, int] = {}
    columns: dict[str, list[np.ndarray | list[Any]]] = {field: [] for field in _GROUPS.names}
    for footer in footers:
        groups = footer.groups if footer.groups is not None else np.zeros((0, 4), np.int64)
        numbers = np.arange(len(groups))
        if not len(groups):
            groups, numbers = np.zeros((1, 4), np.int64), np.array([-1])
        schema = schemas.setdefault(footer.schema, len(schemas)) if footer.schema else -1
        for field, value in (
            ("subset", name), ("shard", footer.shard.name), ("size", footer.shard.size),
            ("footer", footer.length), ("digest", footer.digest), ("schema", schema),
            ("refused", footer.refused),
        ):  # fmt: skip
            columns[field].append([value] * len(groups))
        for field, values in zip(
            ("row_group", "rows", "start", "length", "unpacked"), (numbers, *groups.T), strict=True
        ):
            columns[field].append(values)
    arrays = [
        pa.chunked_array([pa.array(part, field.type) for part in columns[field.name]], field.type)
        for field in _GROUPS
    ]
    table = pa.Table.from_arrays(arrays, schema=_GROUPS).combine_chunks()
    return SubsetFooters(name, table, tuple(unpack(text) for text in schemas))


# -- what of it is usable -----------------------------------------------------------------------


def _refuse_unusable(subset: SubsetFooters, settings: dict[str, Any]) -> SubsetFooters:
    """Refuse the shards whose columns lack what a row needs or contradict the other shards'."""
    why: dict[int, str] = {}
    for number, schema in enumerate(subset.schemas):
        problem = schema_complaint(schema, settings)
        if problem is not None:
            why[number] = problem
    rest = np.array([i for i in range(len(subset.schemas)) if i not in why], dtype=np.int64)
    used = subset.by_rows(rest)
    why |= {used[k]: text for k, text in unify([subset.schemas[i] for i in used])[1].items()}
    if not why:
        return subset
    refused = [
        text if text is not None else why.get(schema)
        for text, schema in zip(
            subset.table["refused"].to_pylist(), subset.table["schema"].to_pylist(), strict=True
        )
    ]
    place = subset.table.schema.get_field_index("refused")
    table = subset.table.set_column(place, _GROUPS.field("refused"), pa.array(refused, pa.string()))
    return SubsetFooters(subset.name, table, subset.schemas)


def _save(cache: Path, name: str, known: dict[str, _Footer]) -> None:
    """Keep the footers of use; other processes may do the same at the same time."""
    good = {shard: known[shard] for shard in sorted(known) if known[shard].refused is None}
    if good:
        mine = cache / f".{name}.{os.getpid()}"
        save_index(mine, [_gather(good, [footer.shard for footer in good.values()])])
        mine.replace(cache / f"{name}.parquet")


def _load(cache: Path, name: str, files: list[Shard]) -> dict[str, _Footer]:
    """Return what `cache` has of these very files of a subset; a torn file is as none."""
    path = cache / f"{name}.parquet"
    try:
        found = load_index(path)
        schemas = [pack(schema) for schema in found[0].schemas]
    except (OSError, pa.ArrowException, KeyError, ValueError, IndexError):
        return {}
    table = found[0].table
    if len(found) != 1 or found[0].name != name or table.schema != _GROUPS:
        return {}
    columns = {field: table[field].to_pylist() for field in _GROUPS.names}
    spans = np.stack([table[f].to_numpy() for f in ("rows", "start", "length", "unpacked")], 1)
    shards = columns["shard"]
    bounds = [i for i in range(len(shards)) if i == 0 or shards[i] != shards[i - 1]]
    wanted = {shard.name: shard for shard in files}
    footers = {}
    for a, b in zip(bounds, [*bounds[1:], len(shards)], strict=True):
        shard = wanted.get(shards[a])
        if shard is not None and shard.size == columns["size"][a]:
            groups = spans[a:b] if columns["row_group"][a] >= 0 else spans[:0]
            footers[shard.name] = _Footer(
                shard, None, columns["footer"][a], columns["digest"][a],
                schemas[columns["schema"][a]], groups,
            )  # fmt: skip
    return footers
