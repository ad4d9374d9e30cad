"""A filesystem in memory that keeps a log of the ranges it gave and can misbehave on demand."""

import threading
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import fsspec
from fsspec.implementations.memory import MemoryFileSystem


class FlakyFileSystem(MemoryFileSystem):
    """`flaky://`: what is asked of it is in `log`; `fault(path, start, data)` may change or raise."""

    protocol = "flaky"
    store: dict = {}
    pseudo_dirs = [""]
    log: list[tuple[str, int, int]] = []
    fault: Callable[[str, int, bytes], bytes] | None = None
    _guard = threading.Lock()

    @classmethod
    def _strip_protocol(cls, path):
        return super()._strip_protocol(path.replace("flaky://", "memory://"))

    def cat_file(self, path, start=None, end=None, **options):
        data = super().cat_file(path, start=start, end=end)
        with self._guard:
            fault = type(self).fault
        if fault is not None:
            data = fault(path, start, data)
        with self._guard:
            self.log.append((path, start, end))
        return data


fsspec.register_implementation("flaky", FlakyFileSystem, clobber=True)


def spoiling(
    times: float, place: Callable[[bytes], int], of: Callable[[str, int], bool] | None = None
) -> Callable[[str, int, bytes], bytes]:
    """Return a fault: the first answers of a file have another byte, each its own, at `place`.

    `of`: which answers, by path and first byte.
    """
    seen: Counter[str] = Counter()

    def fault(path: str, start: int, data: bytes) -> bytes:
        if of is not None and not of(path, start):
            return data
        seen[path] += 1
        if seen[path] > times:
            return data
        at = place(data) % len(data)
        return data[:at] + bytes([data[at] ^ seen[path]]) + data[at + 1 :]

    return fault


def serve(folder: Path) -> str:
    """Put a local folder there, nothing else, with an empty log; return its address."""
    FlakyFileSystem.store.clear()
    FlakyFileSystem.pseudo_dirs[:] = [""]
    FlakyFileSystem.log.clear()
    FlakyFileSystem.fault = None
    fsspec.filesystem("flaky").put(str(folder), "/data", recursive=True)
    return "flaky://data"
