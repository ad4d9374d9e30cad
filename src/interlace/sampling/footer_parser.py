"""Footers parsed in a process of their own, which hostile bytes may end without ending the caller.

The C++ reader aborts its process on some spoiled footers, where no Python code can catch it. A
child that reads one footer after the other costs half a second once; if it dies, that footer is
refused and the next has a new child.
"""

import atexit
import base64
import json
import os
import resource
import signal
import struct
import sys
import threading
from dataclasses import dataclass
from typing import Any, BinaryIO

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from interlace.sampling.child import Child, address_space, limit
from interlace.secrets import one_line

LONGEST_PARSE_S = 60.0
MOST_MEMORY = 8 * 1024**3  # of the child, in bytes of address space
MOST_ROWS = 2**31 - 1  # of a row group; page headers count values in 32 bits
_LOST = 2**62  # bytes; more than any file, and sums of two still fit 64 bits
_HEAD = struct.Struct("<qq")

SPAN = ("rows", "start", "length", "unpacked", "images", "turns")
"""What is known of a row group; the last two: items in its columns `images` and `texts`."""


@dataclass(frozen=True)
class Parsed:
    """What a footer says; `groups` has a row of the columns `SPAN` per row group."""

    refused: str | None
    schema: str  # packed, "" where refused
    groups: np.ndarray


class FooterParser:
    """A child process that parses; started when first needed, safe to share between threads."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._child: Child | None = None
        self._owner = 0

    def parse(self, footer: bytes, size: int) -> Parsed:
        """Return what the last bytes of a file of `size` bytes say; never raises for what they are.

        `refused` tells why they are of no use: not Parquet, beyond the file, implausible, or the
        end of the process that read them.
        """
        with self._lock:
            child = self._running()
            head = _HEAD.pack(len(footer), size)
            line = child.ask(head, footer, patience_s=LONGEST_PARSE_S)
            if line is None:
                status, self._child = child.close(), None
                return _refused(f"the Parquet reader does not survive its footer (status {status})")
        answer = json.loads(line)
        groups = np.array(answer["groups"], np.int64).reshape(-1, len(SPAN))
        return Parsed(answer["refused"], answer["schema"], groups)

    def close(self) -> None:
        """End the child, if there is one."""
        with self._lock:
            if self._child is not None and self._owner == os.getpid():
                self._child.close()
                self._child = None

    def _running(self) -> Child:
        if self._child is None or self._owner != os.getpid():  # a fork shares no child
            self._child, self._owner = Child(__name__), os.getpid()
        return self._child


PARSER = FooterParser()
"""The one of this process."""
atexit.register(PARSER.close)


def pack(schema: pa.Schema) -> str:
    """Return a schema without its metadata as text."""
    return base64.b64encode(schema.remove_metadata().serialize().to_pybytes()).decode("ascii")


def unpack(text: str) -> pa.Schema:
    """Return the schema in a text of `pack`."""
    return pa.ipc.read_schema(pa.BufferReader(base64.b64decode(text)))


def group_span(
    metadata: pq.FileMetaData, number: int, leaves: list[tuple[str, bool]]
) -> tuple[int, ...]:
    """Return a row group's `SPAN`: rows, first byte, length in the file, bytes when unpacked, items.

    `leaves`: of each leaf column, which column it is of and whether within a list. Items of a list
    column are the values of its leaves: a list without items, or null, counts as one. A column that
    is absent has one a row.

    To be called on footers that `FooterParser` has let pass, else it may end the process.
    Raises `ValueError` for numbers that no writer means.
    """
    group = metadata.row_group(number)
    rows = group.num_rows
    if rows == 0:  # nothing is written for it, and its offsets mean nothing
        return 0, 4, 0, 0, 0, 0
    starts, ends, unpacked = [], [], 0
    items = {"images": rows, "texts": rows}
    for i, (top, nested) in enumerate(leaves):
        column = group.column(i)
        values = column.num_values
        if values < rows or (values > rows and not nested):
            raise ValueError(f"row group {number} has {rows} rows and a column of {values} values")
        start = column.data_page_offset
        if column.has_dictionary_page and 0 < column.dictionary_page_offset < start:
            start = column.dictionary_page_offset
        length, plain = column.total_compressed_size, column.total_uncompressed_size
        if start < 4 or length < 0 or plain < 0:
            raise ValueError(f"row group {number} has a column of {length} bytes at byte {start}")
        if top in items:
            items[top] = max(items[top], values)
        starts.append(start)
        ends.append(start + length)
        unpacked += plain
    start = min(starts, default=4)
    # Some writers leave one of the two announcements at zero.
    unpacked = min(max(unpacked, group.total_byte_size), _LOST)
    return rows, start, max(ends, default=4) - start, unpacked, items["images"], items["texts"]


def describe(footer: bytes, size: int) -> tuple[str, list[tuple[int, ...]]]:
    """Return packed schema and spans of a footer of a file of `size` bytes, in this process.

    Raises `ValueError` or an Arrow error where it is of no use, if the process survives it.
    """
    metadata = pq.read_metadata(pa.BufferReader(b"PAR1" + footer))
    columns = [metadata.schema.column(i) for i in range(len(metadata.schema))]
    leaves = [(column.path.split(".")[0], column.max_repetition_level > 0) for column in columns]
    if any(
        metadata.row_group(i).num_columns != len(leaves) for i in range(metadata.num_row_groups)
    ):
        raise ValueError(f"a row group without some of its {len(leaves)} columns")
    groups = [group_span(metadata, number, leaves) for number in range(metadata.num_row_groups)]
    end = 4
    for number in sorted(range(len(groups)), key=lambda i: groups[i][1]):
        rows, start, length = groups[number][:3]
        if start + length > size - len(footer):
            raise ValueError(f"row group {number} lies outside the file")
        # A row of null columns takes less than a byte; thousands of millions of them are a lie.
        if not 0 <= rows <= min(MOST_ROWS, 10_000 + length):
            raise ValueError(f"row group {number} claims {rows} rows in {length} bytes")
        if rows and start < end:
            raise ValueError(f"row group {number} overlaps another")
        end = max(end, start + length)
    total = sum(rows for rows, *_ in groups)
    if metadata.num_rows != total:
        raise ValueError(f"{metadata.num_rows} rows, but {total} in its row groups")
    return pack(metadata.schema.to_arrow_schema()), groups


def _refused(why: str) -> Parsed:
    return Parsed(why, "", np.zeros((0, len(SPAN)), np.int64))


def _answer(footer: bytes, size: int) -> dict[str, Any]:
    try:
        schema, groups = describe(footer, size)
    except (pa.ArrowException, OSError, ValueError, OverflowError, MemoryError) as error:
        return {"refused": f"truncated or not Parquet ({one_line(error)})",
                "schema": "", "groups": []}  # fmt: skip
    return {"refused": None, "schema": schema, "groups": groups}


def _serve(asked: BinaryIO, answers: BinaryIO) -> None:
    while len(head := asked.read(_HEAD.size)) == _HEAD.size:
        length, size = _HEAD.unpack(head)
        footer = asked.read(length)
        if len(footer) < length:
            return
        answers.write(json.dumps(_answer(footer, size)).encode() + b"\n")
        answers.flush()


if __name__ == "__main__":
    limit(resource.RLIMIT_CORE, 0)
    if address_space() is not None:
        limit(resource.RLIMIT_AS, MOST_MEMORY)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # it ends with its parent's pipe
    _serve(sys.stdin.buffer, sys.stdout.buffer)
