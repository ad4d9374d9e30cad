"""A process of ours that answers over pipes, and that hostile bytes may end without the caller."""

import os
import resource
import select
import subprocess
import sys
from pathlib import Path

_STATM = Path("/proc/self/statm")


class Child:
    """A process that runs a module; it ends when the one that started it is gone."""

    def __init__(self, module: str, **environment: str) -> None:
        paths = os.pathsep.join(path for path in sys.path if path)
        self._process = subprocess.Popen(
            [sys.executable, "-m", module],
            env=os.environ | environment | {"PYTHONPATH": paths},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,  # "terminate called after throwing ..."
        )
        self.pid = self._process.pid

    def ask(self, *parts: bytes, patience_s: float | None = None) -> bytes | None:
        """Write `parts` and return a line; None where the child ended over it or took longer."""
        asked, answers = self._process.stdin, self._process.stdout
        assert asked is not None
        assert answers is not None
        try:
            for part in parts:
                asked.write(part)
            asked.flush()
        except BrokenPipeError:
            return None
        if patience_s is not None and not select.select([answers], [], [], patience_s)[0]:
            return None
        line = answers.readline()
        return line if line.endswith(b"\n") else None

    def close(self) -> int:
        """End it; return its exit status."""
        self._process.kill()
        status = self._process.wait()
        for pipe in (self._process.stdin, self._process.stdout):
            assert pipe is not None
            try:
                pipe.close()
            except BrokenPipeError:  # it still held bytes for a child that is gone
                continue
        return status


def limit(what: int, most: int) -> None:
    """Limit what this process may take of a resource, within what it was allowed itself."""
    hard = resource.getrlimit(what)[1]
    unlimited = resource.RLIM_INFINITY
    soft = min((n for n in (most, hard) if n != unlimited), default=unlimited)
    resource.setrlimit(what, (soft, hard))


def address_space() -> int | None:
    """Return the bytes of address space that this process has; None where no /proc tells.

    Systems without one heed no limit of it either.
    """
    if not _STATM.exists():
        return None
    return int(_STATM.read_text(encoding="ascii").split()[0]) * resource.getpagesize()
