"""The row groups of one subset: fetched in parallel, checked, and spooled so that none is twice.

A spool file holds the rows of one row group that may be needed. It is written beside its place and
renamed, so it is whole or absent, and a killed job goes on from what lies there.
"""

import io
import threading
from collections import defaultdict, deque
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from interlace.errors import InputError
from interlace.io import atomic_path, read_json, write_json
from interlace.sampling.footer_store import FooterStore
from interlace.sampling.footers import fetch_footer, forget
from interlace.sampling.index import SubsetFooters
from interlace.sampling.ranges import RangeReader, one_line
from interlace.sampling.schemas import conform
from interlace.sampling.source import Source, cache_folder

MOST_UNPACKED = 1024**3
"""Bytes; a row group whose footer announces more is left alone: memory would not hold it."""

IN_FLIGHT = 1024**3
"""Bytes, packed and unpacked, of the row groups that are being fetched and decoded at one time."""

Key = tuple[int, int]  # (row group within the subset, window)


class UnreadableRowGroupError(Exception):
    """A row group whose bytes are torn, flipped or of another kind than its footer says."""


class Fetcher:
    """Fetches row groups ahead of their use; a context manager.

    `windows` says which rows of a row group are spooled together: those of one window, so that
    `row` keeps little of each. However many `workers` there are, no more than `IN_FLIGHT` bytes are
    being decoded, or one row group.
    """

    def __init__(
        self,
        source: Source,
        footers: SubsetFooters,
        windows: np.ndarray,
        reader: RangeReader,
        planned: Path,
        spool: Path,
        workers: int,
    ) -> None:
        """`windows`: a number for each row of the subset. `planned`: the folder of the plan."""
        self._source, self._footers, self._reader, self._spool = source, footers, reader, spool
        self._planned = planned
        # Where no commit says that a shard is what it was, its footer is fetched to tell.
        kept = [cache_folder(source), planned] if source.revision is not None else []
        self._store = FooterStore(*(folder for folder in kept if folder is not None), spool)
        self._unchanged: set[str] = set()  # shards whose footer was compared
        self._groups, self._schema = footers.groups, footers.schema
        ends = np.cumsum(self._groups["rows"])
        self._starts = ends - self._groups["rows"]
        self._windows = windows
        self._room = _Room(IN_FLIGHT)
        self._ahead = 2 * workers
        self._pool = ThreadPoolExecutor(workers)
        self._locks: defaultdict[str, threading.Lock] = defaultdict(threading.Lock)
        self._lock = threading.Lock()
        self._metadata: dict[str, pq.FileMetaData] = {}
        spool.mkdir(parents=True, exist_ok=True)

    def __enter__(self) -> "Fetcher":
        return self

    def __exit__(self, *error: object) -> None:
        # What is under way is spooled before an error leaves, the rest isn't begun.
        self._pool.shutdown(wait=True, cancel_futures=True)

    def spooled_rows(self, key: Key) -> np.ndarray:
        """Return the rows, numbered within their group, that the spool holds under `key`."""
        group, window = key
        start = self._starts[group]
        windows = self._windows[start : start + self._groups["rows"][group]]
        return np.flatnonzero(windows == window)

    def fetch(self, keys: list[Key]) -> Iterator[tuple[Key, pa.Table | str]]:
        """Yield the rows under each key, in the order of `keys`, or why they cannot be read.

        Raises `InputError` where the source fails for good or has changed since it was planned.
        """
        ahead: deque[tuple[Key, Future[None]]] = deque()
        waiting = iter(keys)
        while True:
            while len(ahead) < self._ahead and (key := next(waiting, None)) is not None:
                ahead.append((key, self._pool.submit(self._spool_group, key)))
            if not ahead:
                return
            key, future = ahead.popleft()
            future.result()
            yield key, self._load(key)

    def _path(self, key: Key, extension: str) -> Path:
        return self._spool / f"{key[0]:07d}-{key[1]:02d}.{extension}"

    def _load(self, key: Key) -> pa.Table | str:
        path = self._path(key, "arrow")
        try:
            with pa.memory_map(str(path)) as file:
                return pa.ipc.open_file(file).read_all()
        except FileNotFoundError:
            return read_json(self._path(key, "json"))["unreadable"]
        except pa.ArrowException as error:
            raise InputError(
                f"{path}: torn ({one_line(error)}); delete it and run again"
            ) from error

    def _spool_group(self, key: Key) -> None:
        path = self._path(key, "arrow")
        if path.exists() or self._path(key, "json").exists():
            return
        length, unpacked = (int(self._groups[name][key[0]]) for name in ("length", "unpacked"))
        with self._room.of(length + max(0, min(unpacked, MOST_UNPACKED))):
            try:
                table = self._group(key[0])
            except UnreadableRowGroupError as error:
                write_json(self._path(key, "json"), {"unreadable": str(error)})
                return
            wanted = self.spooled_rows(key)
            if len(wanted) < len(table):
                table = table.take(wanted)
            options = pa.ipc.IpcWriteOptions(compression="lz4")  # zeros must not fill the disk
            with (
                atomic_path(path) as partial,
                pa.OSFile(str(partial), "wb") as file,
                pa.ipc.new_file(file, table.schema, options=options) as writer,
            ):
                writer.write_table(table)

    def _group(self, group: int) -> pa.Table:
        """Fetch and decode a row group; one that can't be decoded is fetched once more."""
        shard = str(self._groups["shard"][group])
        number, start, length, unpacked = (
            int(self._groups[name][group]) for name in ("row_group", "start", "length", "unpacked")
        )
        if unpacked > MOST_UNPACKED:
            raise UnreadableRowGroupError(f"announces {unpacked} bytes, more than {MOST_UNPACKED}")
        path = self._source.path(self._footers.name, shard)
        metadata = self._metadata_of(shard, group)
        for last in (False, True):
            data = self._reader.read(path, start, length)
            try:
                return decode_group(metadata, number, data, start, self._schema)
            except UnreadableRowGroupError:
                if last:
                    self._check_unchanged(shard, group)
                    raise
        raise AssertionError("unreachable: the second attempt returns or raises")

    def _metadata_of(self, shard: str, group: int) -> pq.FileMetaData:
        """Return a shard's metadata from its footer, kept by planning or fetched and spooled."""
        with self._lock:
            lock = self._locks[shard]
        with lock:
            if shard not in self._metadata:
                mark, length = (
                    str(self._groups["digest"][group]),
                    int(self._groups["footer"][group]),
                )
                footer = self._store.get(mark, length)
                if footer is None:
                    footer = self._fetch_footer(shard, group)
                    self._store.put(mark, footer)
                # The very bytes that were parsed for the plan, in a process that could be spared.
                self._metadata[shard] = pq.read_metadata(pa.BufferReader(b"PAR1" + footer))
            return self._metadata[shard]

    def _check_unchanged(self, shard: str, group: int) -> None:
        """Check that a shard that cannot be decoded has the footer still that was planned with."""
        with self._lock:
            lock = self._locks[shard]
        with lock:
            if shard not in self._unchanged:
                self._fetch_footer(shard, group)

    def _fetch_footer(self, shard: str, group: int) -> bytes:
        """Fetch a shard's footer; raises `InputError` where it is not the one planned with."""
        path = self._source.path(self._footers.name, shard)
        size, length = (int(self._groups[name][group]) for name in ("size", "footer"))
        mark = str(self._groups["digest"][group])
        footer = fetch_footer(self._reader, path, size, length, mark)
        if footer is not None:
            self._unchanged.add(shard)
            return footer
        stale = [self._planned.parent]
        cache = cache_folder(self._source)
        if cache is not None:
            try:
                forget(cache, self._footers.name)
            except OSError:
                stale.append(cache)
        raise InputError(
            f"{path}: changed since it was planned; delete {' and '.join(map(str, stale))} and run "
            "again"
        )


def decode_group(
    metadata: pq.FileMetaData, number: int, data: bytes, start: int, schema: pa.Schema
) -> pa.Table:
    """Return a row group in the columns of `schema` from its bytes, which begin at byte `start`.

    Columns that the shard lacks are null, types are widened. Page checksums are verified where
    the writer left any. Raises `UnreadableRowGroupError`.
    """
    try:
        file = pq.ParquetFile(
            _Piece(data, start), metadata=metadata, page_checksum_verification=True
        )
        table = file.read_row_group(number, use_threads=False)
        table.validate()
        if table.num_rows != metadata.row_group(number).num_rows:
            raise UnreadableRowGroupError(
                f"{table.num_rows} rows for {metadata.row_group(number).num_rows}"
            )
        return conform(table, schema)
    except (pa.ArrowException, OSError, ValueError) as error:
        raise UnreadableRowGroupError(one_line(error)) from error


class _Room:
    """Lets threads in while what they hold together stays below a limit; one is always let in."""

    def __init__(self, limit: int) -> None:
        self._limit, self._held = limit, 0
        self._changed = threading.Condition()

    @contextmanager
    def of(self, amount: int) -> Iterator[None]:
        with self._changed:
            self._changed.wait_for(lambda: not self._held or self._held + amount <= self._limit)
            self._held += amount
        try:
            yield
        finally:
            with self._changed:
                self._held -= amount
                self._changed.notify_all()


class _Piece(io.RawIOBase):
    """A file of which only one range is there; reading elsewhere is an error."""

    def __init__(self, data: bytes, start: int) -> None:
        self._data, self._start, self._at = memoryview(data), start, 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        base = {io.SEEK_SET: 0, io.SEEK_CUR: self._at, io.SEEK_END: self._end}[whence]
        self._at = base + offset
        return self._at

    def tell(self) -> int:
        return self._at

    def read(self, size: int = -1) -> bytes:
        begin = self._at - self._start
        end = len(self._data) if size < 0 else begin + size
        if begin < 0 or end > len(self._data):
            raise OSError(f"bytes {self._at} to {self._start + end} belong to no column of it")
        self._at = self._start + end
        return bytes(self._data[begin:end])

    @property
    def _end(self) -> int:
        return self._start + len(self._data)
