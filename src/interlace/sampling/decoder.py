"""Row groups decoded in processes of their own, which hostile bytes may end without the caller.

A file of 60 kB whose footer announces 1 MB may unpack to many gigabytes: one long dictionary entry
that every row refers to, strings that each share the prefix of the one before, pages of zeros.
Nothing in a footer rules it out, since each page says itself how it is encoded and how large it
is, and on some spoiled pages the C++ reader ends its process. So every row group is decoded by a
child whose memory and CPU time are limited, and which spools the rows itself.
"""

import atexit
import json
import os
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from interlace.sampling import decoding
from interlace.sampling.child import Child
from interlace.sampling.decoding import MOST_CPU_S, READY, Task, UnreadableRowGroupError

SLACK = 256 * 1024**2
"""Bytes that a child may take beyond what a row group announces: short dictionaries expand, too."""

COPIES = 3  # of the unpacked rows at one time: as decoded, as conformed, and to spare


class Decoders:
    """Children that decode, at most one a core at a time; to be shared between threads.

    They are started when needed and kept for the next row group.
    """

    def __init__(self, at_once: int | None = None) -> None:
        """`at_once`: how many may decode at one time, by default the cores of this process."""
        self._at_once = at_once or _cores()
        self._room = Room(self._at_once)
        self._lock = threading.Lock()
        self._idle: list[_Decoder] = []
        self._children = 0

    def start(self) -> None:
        """Start a child unless there is one; it gets ready while the first bytes are fetched."""
        with self._lock:
            if not self._children:
                self._idle.append(_Decoder())
                self._children += 1

    def spool(
        self, task: Task, footer: bytes, data: bytes, rows: np.ndarray | None, path: Path
    ) -> None:
        """Write the `rows` of a row group (None: all) to `path`, an Arrow file, whole or not at all.

        `footer`: the shard's, to the end of the file; `data`: the bytes of the row group.

        A child may take the memory that the footer speaks of, and `SLACK`. If it needs more or
        ends, a fresh one may take what `task.most` speaks of, while no other decodes: so hostile
        row groups take little memory together, and a neighbour's need ends none for good.

        Raises `UnreadableRowGroupError`, and `OSError` where `path` cannot be written or no child
        started.
        """
        for alone in (False, True):
            unpacked = task.most if alone else min(task.unpacked, task.most)
            limit = SLACK + 2 * len(data) + COPIES * unpacked
            with self._room.of(self._at_once if alone else 1):
                outcome, detail = self._ask(alone, task, limit, footer, data, rows, path)
            if outcome == "spooled":
                return
            if outcome == "disk":
                raise OSError(*detail)
            if outcome == "unreadable":
                raise UnreadableRowGroupError(detail)
        # In the same words however it ended: that may depend on what else the machine does.
        raise UnreadableRowGroupError(
            f"cannot be decoded in {limit} bytes of memory and {MOST_CPU_S} s"
        )

    def close(self, but: int = 0) -> None:
        """End the idle children, all `but` so many."""
        with self._lock:
            idle, self._idle = self._idle[but:], self._idle[:but]
            self._children -= len(idle)
        for child in idle:
            child.close()

    def forget(self) -> None:
        """Let go of the children of the process that this one was forked from."""
        self.__init__(self._at_once)

    def _ask(
        self, fresh: bool, task: Task, limit: int, footer: bytes, data: bytes,
        rows: np.ndarray | None, path: Path,
    ) -> tuple[str, Any]:  # fmt: skip
        """Return a child's answer; `ended` and None where it gave none."""
        child = self._take(fresh)
        partial = path.with_name(f".{path.name}.{child.pid}")
        outcome = "ended"
        try:
            outcome, detail = child.ask(task, limit, footer, data, rows, partial)
            if outcome == "spooled":
                partial.replace(path)
        finally:
            self._put_back(child, keep=outcome in ("spooled", "unreadable"))
            partial.unlink(missing_ok=True)
        return outcome, detail

    def _take(self, fresh: bool) -> "_Decoder":
        with self._lock:
            if self._idle and not fresh:
                return self._idle.pop()
            child = _Decoder()
            self._children += 1
        return child

    def _put_back(self, child: "_Decoder", keep: bool) -> None:
        with self._lock:
            if keep:
                self._idle.append(child)
                return
            self._children -= 1
        child.close()


class Room:
    """Lets threads in while what they hold together stays below a limit; one is always let in."""

    def __init__(self, limit: int) -> None:
        self._limit, self._held = limit, 0
        self._changed = threading.Condition()

    @contextmanager
    def of(self, amount: int) -> Iterator[None]:
        """Hold `amount` of it within the block."""
        with self._changed:
            self._changed.wait_for(lambda: not self._held or self._held + amount <= self._limit)
            self._held += amount
        try:
            yield
        finally:
            with self._changed:
                self._held -= amount
                self._changed.notify_all()


class _Decoder:
    """A child that decodes."""

    def __init__(self) -> None:
        # No threads to wait for at the start, no allocator that reserves addresses ahead, and
        # memory is kept from one row group to the next: new pages are half of the time.
        self._child = Child(
            decoding.__name__,
            OMP_NUM_THREADS="1",
            OPENBLAS_NUM_THREADS="1",
            ARROW_DEFAULT_MEMORY_POOL="system",
            MALLOC_ARENA_MAX="1",
            MALLOC_MMAP_THRESHOLD_=str(2**25),
            MALLOC_TRIM_THRESHOLD_=str(2**27),
        )
        self.pid, self.close = self._child.pid, self._child.close
        self._ready = False

    def ask(
        self,
        task: Task,
        limit: int,
        footer: bytes,
        data: bytes,
        rows: np.ndarray | None,
        path: Path,
    ) -> tuple[str, Any]:
        """Return the outcome and its detail; `ended` and None where the child ended over it."""
        if not self._ready and self._child.ask() != READY:
            raise OSError(f"{sys.executable} -m {decoding.__name__} does not start")
        self._ready = True
        picked = b"" if rows is None else np.asarray(rows, np.int64).tobytes()
        head = {"task": asdict(task), "limit": limit, "path": str(path), "all": rows is None,
                "lengths": [len(footer), len(data), len(picked)]}  # fmt: skip
        line = self._child.ask(json.dumps(head).encode() + b"\n", footer, data, picked)
        return ("ended", None) if line is None else tuple(json.loads(line))


def _cores() -> int:
    """Return how many cores this process may use; not all systems know of less than all."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


DECODERS = Decoders()
"""Those of this process."""
atexit.register(DECODERS.close)
os.register_at_fork(after_in_child=DECODERS.forget)
