"""The row groups of one subset: fetched in parallel, checked, and spooled so that none is twice.

A spool file holds the rows of one row group that may be needed. It is written beside its place and
renamed, so it is whole or absent, and a killed job goes on from what lies there. What decodes and
writes it is a child process (`interlace.sampling.decoder`), since the bytes may be hostile.
"""

import threading
from collections import defaultdict, deque
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from functools import partial
from pathlib import Path

import numpy as np
import pyarrow as pa

from interlace.errors import InputError
from interlace.io import read_json, write_json
from interlace.sampling.decoder import DECODERS, Room
from interlace.sampling.decoding import Task, UnreadableRowGroupError
from interlace.sampling.footer_parser import pack
from interlace.sampling.footer_store import FooterStore
from interlace.sampling.footers import fetch_footer, forget
from interlace.sampling.index import SubsetFooters
from interlace.sampling.ranges import RangeReader
from interlace.sampling.source import Source, cache_folder
from interlace.secrets import one_line

MOST_UNPACKED = 1024**3
"""Bytes; a row group whose footer announces more is left alone: memory would not hold it. One that
unpacks to more than that, whatever its footer announces, counts as unreadable."""

IN_FLIGHT = 1024**3
"""Bytes, packed and unpacked, of the row groups that are being fetched and decoded at one time."""

Key = tuple[int, int]  # (row group within the subset, window)


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
        self._groups, self._schema = footers.groups, pack(footers.schema)
        ends = np.cumsum(self._groups["rows"])
        self._starts = ends - self._groups["rows"]
        self._windows = windows
        self._room = Room(IN_FLIGHT)
        self._ahead = 2 * workers
        self._pool = ThreadPoolExecutor(workers)
        self._locks: defaultdict[str, threading.Lock] = defaultdict(threading.Lock)
        self._lock = threading.Lock()
        self._kept: dict[str, bytes] = {}  # footers by shard
        spool.mkdir(parents=True, exist_ok=True)

    def __enter__(self) -> "Fetcher":
        return self

    def __exit__(self, *error: object) -> None:
        # What is under way is spooled before an error leaves, the rest isn't begun or tried again.
        self._reader.stop()
        self._pool.shutdown(wait=True, cancel_futures=True)
        DECODERS.close(but=1)  # the next subset need not wait for its first

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
        if self._path(key, "arrow").exists() or self._path(key, "json").exists():
            return
        length, unpacked = (int(self._groups[name][key[0]]) for name in ("length", "unpacked"))
        with self._room.of(length + max(0, min(unpacked, MOST_UNPACKED))):
            try:
                self._decode(key)
            except UnreadableRowGroupError as error:
                write_json(self._path(key, "json"), {"unreadable": str(error)})

    def _decode(self, key: Key) -> None:
        """Fetch and spool a row group; one that can't be decoded is fetched again to make sure."""
        group, rows = key[0], self.spooled_rows(key)
        number, start, announced, count = (
            int(self._groups[name][group]) for name in ("row_group", "start", "unpacked", "rows")
        )
        announced = max(announced, int(self._groups["length"][group]))
        if announced > MOST_UNPACKED:
            raise UnreadableRowGroupError(f"announces {announced} bytes, more than {MOST_UNPACKED}")
        DECODERS.start()
        shard = str(self._groups["shard"][group])
        footer = self._footer_of(shard, group)
        task = Task(number, start, self._schema, announced, MOST_UNPACKED)
        picked = rows if len(rows) < count else None
        path = self._path(key, "arrow")
        what = f"{self._source.path(self._footers.name, shard)}: row group {number}"
        for data in self._reader.bodies(what, partial(self._group, group)):
            try:
                DECODERS.spool(task, footer, data, picked, path)
                return
            except UnreadableRowGroupError as error:
                unreadable = error
        self._check_unchanged(shard, group)
        raise unreadable

    def _group(self, group: int) -> bytes:
        """Return the bytes of a row group."""
        path = self._source.path(self._footers.name, str(self._groups["shard"][group]))
        start, length = (int(self._groups[name][group]) for name in ("start", "length"))
        return self._reader.read(path, start, length)

    def _footer_of(self, shard: str, group: int) -> bytes:
        """Return a shard's footer, kept by planning or fetched and spooled."""
        with self._lock:
            lock = self._locks[shard]
        with lock:
            if shard not in self._kept:
                # The very bytes that were parsed for the plan, in a process that could be spared.
                mark, length = (
                    str(self._groups["digest"][group]),
                    int(self._groups["footer"][group]),
                )
                footer = self._store.get(mark, length)
                if footer is None:
                    footer = self._fetch_footer(shard, group)
                    self._store.put(mark, footer)
                self._kept[shard] = footer
            return self._kept[shard]

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
            f"{path}: changed since it was planned (or its footer came spoiled then); delete "
            f"{' and '.join(map(str, stale))} and run again"
        )
