"""The row groups of a data set as one table, by subset and shard, and its file."""

import json
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from interlace.io import atomic_path, digest
from interlace.sampling.footer_parser import SPAN, pack, unpack
from interlace.sampling.schemas import unify

GROUPS = pa.schema(
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
        ("images", pa.int64()),  # items of that column, an empty list as one
        ("turns", pa.int64()),  # items of the column `texts`, likewise
    ]
)
"""Columns of an index, a row per row group."""
_OF_GROUPS = ("shard", "size", "footer", "digest", "schema", "row_group", *SPAN)


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
        return {name: table[name].to_numpy(zero_copy_only=False) for name in _OF_GROUPS}

    @property
    def num_rows(self) -> int:
        """Rows that can be drawn."""
        return int(self.groups["rows"].sum())

    def bytes_of(self, groups: np.ndarray, revision: str | None) -> int:
        """Return the bytes of row groups, once for each time that a group is named.

        With those of their shards' footers where no commit says that these are what they were when
        they were planned with, since they are then read again.
        """
        footers = dict(
            zip(self.groups["shard"][groups], self.groups["footer"][groups], strict=True)
        )
        again = sum(footers.values()) if revision is None else 0
        return int(self.groups["length"][groups].sum()) + int(again)

    @property
    def fingerprint(self) -> str:
        """A digest of all row groups that can be drawn from, and of their shards' footers."""
        columns = ("shard", "row_group", "rows", "start", "length", "digest")
        return digest([[str(value) for value in self.groups[name]] for name in columns])

    def sure(self, settings: dict[str, Any]) -> np.ndarray:
        """Return how many rows of each row group no limit can reject, as its footer proves.

        A row over a limit has more items than it, any other at least one: of R rows with I items
        at most (I - R) / limit are over it. Rows that are rejected for damage are not known of.
        """
        rows, sure = self.groups["rows"], self.groups["rows"].astype(np.int64)
        if min(settings["max_images"], settings["max_turns"]) == 0:
            return 0 * sure
        if settings["format"] != "finevision":  # an image and a question a row
            return sure
        sure = sure - (self.groups["images"] - rows) // settings["max_images"]
        if settings["long_conversations"] == "reject":
            sure = sure - (self.groups["turns"] - rows) // settings["max_turns"]
        return np.maximum(sure, 0)

    @property
    def refused(self) -> dict[str, str]:
        """Shard -> why it is of no use."""
        bad = self.table.filter(pc.is_valid(self.table["refused"]))
        return dict(zip(bad["shard"].to_pylist(), bad["refused"].to_pylist(), strict=True))

    @property
    def refused_rows(self) -> int:
        """Rows that refused shards announce, where their footers can be read."""
        return pc.sum(self.table.filter(pc.is_valid(self.table["refused"]))["rows"]).as_py() or 0

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


def save_index(path: Path, subsets: Iterable[SubsetFooters]) -> None:
    """Write footers as one Parquet file, sorted by subset as they come, atomically."""
    tables, schemas = [], {}
    for subset in subsets:
        numbers = [schemas.setdefault(pack(s), len(schemas)) for s in subset.schemas]
        column = subset.table["schema"].to_numpy()
        mapped = np.array([*numbers, -1])[column] if len(column) else column
        place = subset.table.schema.get_field_index("schema")
        tables.append(
            subset.table.set_column(place, GROUPS.field("schema"), pa.array(mapped, pa.int32()))
        )
    table = pa.concat_tables([GROUPS.empty_table(), *tables])
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
