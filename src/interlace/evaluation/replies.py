"""A grader's replies on disk."""

import contextlib
import json
import os
import threading
from pathlib import Path
from typing import Any


class Replies:
    """A grader's replies that could be read, kept in a file that a kill cannot spoil.

    `unreadable` counts the others, over all attempts.
    """

    def __init__(self, path: Path) -> None:
        self._path, self._lock = path, threading.Lock()
        self.found: dict[str, str] = {}
        self.unreadable = 0
        for line in path.read_bytes().splitlines() if path.exists() else ():
            with contextlib.suppress(ValueError, LookupError, TypeError, AttributeError):  # torn
                entry = json.loads(line)
                if entry.get("unreadable") is True:
                    self.unreadable += 1
                elif isinstance(entry["key"], str) and isinstance(entry["reply"], str):
                    self.found[entry["key"]] = entry["reply"]

    def add(self, key: str, reply: str) -> None:
        """Keep a reply, durably."""
        self._write({"key": key, "reply": reply})
        self.found[key] = reply

    def add_unreadable(self, key: str) -> None:
        """Count a reply that cannot be read, durably."""
        self._write({"key": key, "unreadable": True})

    def _write(self, entry: dict[str, Any]) -> None:
        line = json.dumps(entry)
        with self._lock, self._path.open("a+b") as handle:
            torn = handle.seek(0, os.SEEK_END) and not _ends_a_line(handle)
            handle.write((b"\n" if torn else b"") + line.encode() + b"\n")
            handle.flush()
            os.fsync(handle.fileno())
            self.unreadable += "unreadable" in entry


def _ends_a_line(handle: Any) -> bool:
    handle.seek(-1, os.SEEK_END)
    return handle.read(1) == b"\n"
