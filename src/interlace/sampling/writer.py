"""Rows gathered into one Parquet file, whose row groups are small however large the rows are."""

from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

GROUP_BYTES = 2 * 1024**2  # of a row group: small, since training reads at random


class RowWriter:
    """Gathers one-row tables into one Parquet file of row groups of about `GROUP_BYTES`."""

    def __init__(self, path: Path, schema: pa.Schema) -> None:
        """Write `path`; the columns are those of `schema` and `id`."""
        self._path = path
        self._schema = schema
        self._file: pq.ParquetWriter | None = None
        self._rows: list[pa.Table] = []
        self._ids: list[str] = []
        self._bytes = 0

    def __enter__(self) -> "RowWriter":
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
