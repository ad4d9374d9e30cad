"""One row group decoded; as a program, one after the other for the process that started it.

What `interlace.sampling.decoder` runs: hostile bytes may end it, and no task gets more memory and
CPU time than it is given.
"""

import functools
import io
import json
import math
import os
import queue
import resource
import signal
import sys
import threading
import time
from dataclasses import dataclass
from typing import Any, BinaryIO

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from interlace.sampling.child import address_space, limit
from interlace.sampling.footer_parser import unpack
from interlace.sampling.schemas import conform
from interlace.secrets import one_line

READY = b"ready\n"
MOST_CPU_S = 300  # a row group; a gigabyte takes less than ten


class UnreadableRowGroupError(Exception):
    """A row group whose bytes are torn, flipped, or not what its footer says."""


@dataclass(frozen=True)
class Task:
    """A row group to decode, apart from its bytes."""

    number: int  # within its shard
    start: int  # its first byte in the shard
    schema: str  # packed: the columns to return
    unpacked: int  # bytes that the footer announces
    most: int  # bytes that its rows may take


def decode_group(
    metadata: pq.FileMetaData,
    number: int,
    data: bytes,
    start: int,
    schema: pa.Schema,
    most: float = math.inf,
) -> pa.Table:
    """Return a row group in the columns of `schema` from its bytes, which begin at byte `start`.

    Columns that the shard lacks are null, types are widened. Page checksums are verified where
    the writer left any. Raises `UnreadableRowGroupError`, also for rows of more than `most` bytes,
    and `MemoryError`; hostile bytes may end the process.
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
        _check_size(table, most)
        table = conform(table, schema)
        _check_size(table, most)
    except MemoryError:  # Arrow's is one of its own exceptions, too
        raise
    except (pa.ArrowException, OSError, ValueError) as error:
        raise UnreadableRowGroupError(one_line(error)) from error
    return table


def _check_size(table: pa.Table, most: float) -> None:
    if table.nbytes > most:
        raise UnreadableRowGroupError(f"unpacks to {table.nbytes} bytes, more than {most}")


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


_Asked = tuple[dict[str, Any], list[bytes]]


def _receive(asked: BinaryIO, tasks: "queue.SimpleQueue[_Asked]") -> None:
    """Hand on what is asked; ends the process, decoding or not, when nobody asks any more."""
    try:
        while line := asked.readline():
            head = json.loads(line)
            parts = [asked.read(length) for length in head["lengths"]]
            if [len(part) for part in parts] != head["lengths"]:
                return
            tasks.put((head, parts))
    finally:
        os._exit(0)


def _serve(tasks: "queue.SimpleQueue[_Asked]", answers: BinaryIO) -> None:
    answers.write(READY)
    answers.flush()
    while True:
        head, parts = tasks.get()
        taken = address_space()
        if taken is not None:
            limit(resource.RLIMIT_AS, taken + head["limit"])
        limit(resource.RLIMIT_CPU, math.ceil(time.process_time()) + MOST_CPU_S)
        answer = _answer(head, *parts)
        del parts
        if taken is not None:
            limit(resource.RLIMIT_AS, resource.RLIM_INFINITY)
        answers.write(json.dumps(answer).encode() + b"\n")
        answers.flush()


def _answer(head: dict[str, Any], footer: bytes, data: bytes, picked: bytes) -> tuple[str, Any]:
    task = Task(**head["task"])
    try:
        table = decode_group(
            _metadata(footer), task.number, data, task.start, _schema(task.schema), task.most
        )
        if not head["all"]:
            table = table.take(np.frombuffer(picked, np.int64))
        _write(table, head["path"])
    except UnreadableRowGroupError as error:
        return "unreadable", str(error)
    except MemoryError:
        return "memory", None
    except OSError as error:
        return "disk", [error.errno, error.strerror or str(error), head["path"]]
    return "spooled", None


def _write(table: pa.Table, path: str) -> None:
    options = pa.ipc.IpcWriteOptions(compression="lz4", use_threads=False)  # zeros fill no disk
    with (
        pa.OSFile(path, "wb") as file,
        pa.ipc.new_file(file, table.schema, options=options) as writer,
    ):
        writer.write_table(table)


@functools.lru_cache(8)
def _metadata(footer: bytes) -> pq.FileMetaData:
    return pq.read_metadata(pa.BufferReader(b"PAR1" + footer))


_schema = functools.lru_cache(8)(unpack)


if __name__ == "__main__":
    limit(resource.RLIMIT_CORE, 0)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # it ends with its parent's pipe
    asked: "queue.SimpleQueue[_Asked]" = queue.SimpleQueue()
    threading.Thread(target=_receive, args=(sys.stdin.buffer, asked), daemon=True).start()
    _serve(asked, sys.stdout.buffer)
