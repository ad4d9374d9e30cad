"""Subsets of a folder of Parquet shards: what their footers say, and single rows out of them.

The folder is local or an address that fsspec knows, such as `hf://datasets/<id>@<revision>`; from
there only footers and the row groups that hold a chosen row are read, by range requests.
"""

import glob
import itertools
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from fsspec.core import url_to_fs

from interlace.errors import InputError
from interlace.progress import track

# Column -> what each item of its lists must have. A column that is null throughout has no items.
NEEDED_COLUMNS = {"images": ("bytes",), "texts": ("user", "assistant")}


@dataclass(frozen=True)
class RowGroup:
    """A row group of a shard; `start` is the number of its first row within the subset.

    `shard` is a path or an address that fsspec knows.
    """

    shard: str
    number: int
    start: int
    num_rows: int


@dataclass(frozen=True)
class Subset:
    """A subset's name, its row groups in the order of shard names and the schema of them all."""

    name: str
    groups: tuple[RowGroup, ...]
    schema: pa.Schema

    @property
    def num_rows(self) -> int:
        """Rows over all shards."""
        return sum(group.num_rows for group in self.groups)


def list_subsets(source: str | Path) -> list[Subset]:
    """Return the subsets of `source` in the order of their names, from Parquet footers alone.

    Raises `InputError` where the folder is missing or empty, where no folder holds Parquet, or
    where a shard is truncated or lacks a needed column.
    """
    filesystem, root = url_to_fs(str(source))
    try:
        if not filesystem.isdir(root):
            raise InputError(f"{source}: no such folder; data.path must name a folder of subsets")
        found = sorted(filesystem.glob(f"{glob.escape(root.rstrip('/'))}/*/*.parquet"))
    except (OSError, ValueError) as error:
        if isinstance(error, InputError):
            raise
        raise InputError(
            f"{source}: can't be listed ({_line(error)}); check data.path, HF_TOKEN and the network"
        ) from error
    shards: dict[str, list[str]] = {}
    for path in found:
        shards.setdefault(PurePosixPath(path).parent.name, []).append(path)
    if not shards:
        raise InputError(
            f"{source}: no <subset>/*.parquet in it; data.path must name such a folder"
        )
    return [
        _read_footers(name, [filesystem.unstrip_protocol(path) for path in files])
        for name, files in track(sorted(shards.items()), "reading footers", unit="subset")
    ]


def open_shard(shard: str) -> pq.ParquetFile:
    """Open a Parquet file by its path or address; only what is asked of it is read."""
    filesystem, path = url_to_fs(shard)
    return pq.ParquetFile(path, filesystem=filesystem)


def _read_footers(name: str, files: list[str]) -> Subset:
    groups: list[RowGroup] = []
    schema = pa.schema([])
    start = 0
    for path in files:
        try:
            with open_shard(path) as file:
                columns = file.schema_arrow
                sizes = [
                    file.metadata.row_group(number).num_rows
                    for number in range(file.num_row_groups)
                ]
        except (pa.ArrowInvalid, OSError) as error:
            raise InputError(
                f"{path}: truncated or not Parquet ({_line(error)}); fetch it again"
            ) from error
        for column, keys in NEEDED_COLUMNS.items():
            if column not in columns.names:
                raise InputError(
                    f"{path}: no column `{column}` (it has {', '.join(columns.names)}); "
                    f"every shard needs {' and '.join(NEEDED_COLUMNS)}"
                )
            if not _is_list_of(columns.field(column).type, keys):
                raise InputError(
                    f"{path}: column `{column}` is {columns.field(column).type}; it must be a list "
                    f"of structs with {' and '.join(keys)}"
                )
        try:
            schema = pa.unify_schemas([schema, columns], promote_options="permissive")
        except (pa.ArrowInvalid, pa.ArrowTypeError) as error:
            raise InputError(
                f"{path}: its columns contradict those of the shards before it ({_line(error)}); "
                "write them with one schema"
            ) from error
        for number, num_rows in enumerate(sizes):
            groups.append(RowGroup(path, number, start, num_rows))
            start += num_rows
    return Subset(name, tuple(groups), schema)


def _is_list_of(kind: pa.DataType, keys: tuple[str, ...]) -> bool:
    if pa.types.is_null(kind):
        return True
    if not (pa.types.is_list(kind) or pa.types.is_large_list(kind)):
        return False
    item = kind.value_type
    return pa.types.is_struct(item) and all(item.get_field_index(key) >= 0 for key in keys)


def read_rows(subset: Subset, rows: list[int]) -> Iterator[tuple[RowGroup, int, pa.Table]]:
    """Yield (row group, row within it, one-row table) of ascending `rows`, each group read once.

    `rows` count within the subset. Raises `InputError` for a row group that cannot be read.
    """
    starts = np.array([group.start for group in subset.groups])
    # An empty row group starts where its successor does; side="right" passes over it.
    of_group = [int(np.searchsorted(starts, row, side="right")) - 1 for row in rows]
    for index, pairs in itertools.groupby(zip(of_group, rows, strict=True), key=lambda p: p[0]):
        group = subset.groups[index]
        try:
            with open_shard(group.shard) as file:
                table = file.read_row_group(group.number)
        except (pa.ArrowInvalid, OSError) as error:
            raise InputError(
                f"{group.shard}: row group {group.number} cannot be read ({_line(error)}); "
                "fetch the file again"
            ) from error
        for _, row in pairs:  # take copies, so that a kept row does not hold its row group
            yield group, row - group.start, table.take([row - group.start])


def _line(error: BaseException) -> str:
    return str(error).splitlines()[0] if str(error) else type(error).__name__
