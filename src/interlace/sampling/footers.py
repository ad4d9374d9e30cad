"""What the footers of a data set's shards say, read by range requests and nothing else.

A footer is asked for by the last bytes of its file; if it is longer, once more. What is known of a
subset is saved as soon as all its shards are read, so that a killed reading goes on from there.
"""

import base64
import json
import os
import threading
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from interlace.io import atomic_path
from interlace.progress import track
from interlace.sampling.ranges import RangeReader, one_line
from interlace.sampling.rows import schema_complaint
from interlace.sampling.source import Shard, Source

FIRST_GUESS = 48 * 1024  # twenty row groups of FineVision's thirteen columns need about 40 kB
_MAGIC = 8  # bytes of footer length and magic number at the end of a file

_GROUPS = pa.schema(
    [
        ("subset", pa.string()),
        ("shard", pa.string()),
        ("size", pa.int64()),  # of the shard, in bytes
        ("footer", pa.int64()),  # length with its trailing eight bytes; 0 where refused
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
            for name in ("shard", "size", "footer", "schema", "row_group", "rows", "start",
                         "length", "unpacked")
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
        return _unify([self.schemas[i] for i in self.by_rows(used)])[0]

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
    missing = [shard for name, files in shards.items() if known[name] is None for shard in files]
    guesses = _Guesses()
    with ThreadPoolExecutor(settings["workers"]) as pool:
        try:
            read = pool.map(lambda shard: _read_shard(source, reader, guesses, shard), missing)
            if missing:
                read = track(read, "reading footers", total=len(missing), unit="shard")
            for name, files in shards.items():
                if known[name] is None:
                    known[name] = _gather(name, [next(read) for _ in files])
                    _save(cache, known[name])
            for _ in read:  # exhausted, so that the progress reports its end
                raise AssertionError("a footer that no shard asked for")
        except BaseException:
            pool.shutdown(cancel_futures=True)
            raise
    return [_refuse_unusable(known[name], settings) for name in shards]


def save_index(path: Path, subsets: Iterable[SubsetFooters]) -> None:
    """Write footers as one Parquet file, sorted by subset as they come, atomically."""
    tables, schemas = [], {}
    for subset in subsets:
        numbers = [schemas.setdefault(_pack(s), len(schemas)) for s in subset.schemas]
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
    schemas = tuple(_unpack(text) for text in packed)
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
    path = source.path(shard.subset, shard.name)
    if shard.size < 12:
        return _Footer(shard, f"truncated or not Parquet ({shard.size} bytes)")
    asked = min(shard.size, max(guesses.of(shard.subset), _MAGIC))
    tail = reader.read(path, shard.size - asked, asked)
    length = int.from_bytes(tail[-8:-4], "little") + _MAGIC
    if tail[-4:] != b"PAR1" or length > shard.size:
        return _Footer(shard, "truncated or not Parquet (it does not end in a footer)")
    if length > asked:
        tail = reader.read(path, shard.size - length, length - asked) + tail
    guesses.learn(shard.subset, length)
    try:
        return _parse(shard, tail[-length:])
    except (pa.ArrowException, OSError, ValueError, OverflowError) as error:
        return _Footer(shard, f"truncated or not Parquet ({one_line(error)})")


def parse_footer(footer: bytes) -> pq.FileMetaData:
    """Return the metadata in a file's last bytes; the file before them is not needed."""
    return pq.read_metadata(pa.BufferReader(b"PAR1" + footer))


def group_span(metadata: pq.FileMetaData, number: int) -> tuple[int, int, int, int]:
    """Return a row group's rows, first byte, length in the file and bytes when unpacked."""
    group = metadata.row_group(number)
    if group.num_rows == 0:  # nothing is written for it, and its offsets mean nothing
        return 0, 4, 0, 0
    starts, ends = [], []
    for i in range(group.num_columns):
        column = group.column(i)
        start = column.data_page_offset
        if column.has_dictionary_page and 0 < column.dictionary_page_offset < start:
            start = column.dictionary_page_offset
        starts.append(start)
        ends.append(start + column.total_compressed_size)
    start = min(starts, default=4)
    return group.num_rows, start, max(ends, default=4) - start, group.total_byte_size


def _parse(shard: Shard, footer: bytes) -> _Footer:
    metadata = parse_footer(footer)
    groups = np.zeros((metadata.num_row_groups, 4), np.int64)
    for number in range(metadata.num_row_groups):
        groups[number] = rows, start, length, _ = group_span(metadata, number)
        if rows < 0 or start < 4 or length < 0 or start + length > shard.size - len(footer):
            return _Footer(shard, f"row group {number} lies outside the file")
    return _Footer(shard, None, len(footer), _pack(metadata.schema.to_arrow_schema()), groups)


def _gather(name: str, footers: list[_Footer]) -> SubsetFooters:
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
            ("footer", footer.length), ("schema", schema), ("refused", footer.refused),
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
    return SubsetFooters(name, table, tuple(_unpack(text) for text in schemas))


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
    why |= {used[k]: text for k, text in _unify([subset.schemas[i] for i in used])[1].items()}
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


def _unify(schemas: list[pa.Schema]) -> tuple[pa.Schema, dict[int, str]]:
    """Return the schema of all and, by position, why some can't be joined with those before."""
    unified, contradicting = pa.schema([]), {}
    for position, schema in enumerate(schemas):
        try:
            # Arrow would widen text to binary, and no row would have texts any more.
            for place, is_text in _texts(schema).items():
                if _texts(unified).get(place, is_text) != is_text:
                    raise pa.ArrowTypeError(f"{place}: text here, binary there")
            unified = pa.unify_schemas([unified, schema], promote_options="permissive")
        except (pa.ArrowInvalid, pa.ArrowTypeError, pa.ArrowNotImplementedError) as error:
            contradicting[position] = (
                f"its columns contradict those of other shards ({one_line(error)})"
            )
    return unified, contradicting


def _texts(schema: pa.Schema) -> dict[str, bool]:
    """Return whether each string or binary, however deep in lists and structs, is a string."""
    found: dict[str, bool] = {}

    def visit(place: str, kind: pa.DataType) -> None:
        if pa.types.is_struct(kind):
            for field in kind:
                visit(f"{place}.{field.name}", field.type)
        elif pa.types.is_list(kind) or pa.types.is_large_list(kind):
            visit(f"{place}[]", kind.value_type)
        elif pa.types.is_string(kind) or pa.types.is_large_string(kind):
            found[place] = True
        elif pa.types.is_binary(kind) or pa.types.is_large_binary(kind):
            found[place] = False

    for field in schema:
        visit(field.name, field.type)
    return found


def _pack(schema: pa.Schema) -> str:
    return base64.b64encode(schema.remove_metadata().serialize().to_pybytes()).decode("ascii")


def _unpack(text: str) -> pa.Schema:
    return pa.ipc.read_schema(pa.BufferReader(base64.b64decode(text)))


def _save(cache: Path, subset: SubsetFooters) -> None:
    """Keep what is known of a subset; other processes may do the same at the same time."""
    mine = cache / f".{subset.name}.{os.getpid()}"
    save_index(mine, [subset])
    mine.replace(cache / f"{subset.name}.parquet")


def _load(cache: Path, name: str, files: list[Shard]) -> SubsetFooters | None:
    """Return what `cache` has of a subset, if it is of these very files; a torn file is as none."""
    path = cache / f"{name}.parquet"
    try:
        found = load_index(path)
    except (OSError, pa.ArrowException, KeyError, ValueError):
        return None
    if len(found) != 1 or found[0].name != name:
        return None
    table = found[0].table
    seen = dict(zip(table["shard"].to_pylist(), table["size"].to_pylist(), strict=True))
    return found[0] if seen == {shard.name: shard.size for shard in files} else None
