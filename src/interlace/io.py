"""Files that are either whole or absent, and digests that tell one content from another."""

import ast
import contextlib
import errno
import fcntl
import glob
import hashlib
import json
import math
import os
import shutil
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from interlace.errors import InputError

_NO_LOCKS = (errno.ENOLCK, errno.ENOSYS, errno.ENOTSUP, errno.EINVAL)  # of disks without locks


@contextlib.contextmanager
def atomic_path(path: str | Path, *, directory: bool = False) -> Iterator[Path]:
    """Yield a path beside `path` to write to; rename it to `path` only if the block succeeds.

    A file or, with `directory=True`, a folder, which is `claimed` meanwhile. Whatever was at `path`
    before is replaced. The path has this process in its name, so that two writers of one file do
    not meet in it. A killed process leaves at most a `.partial` neighbour, which the next attempt
    on its machine removes, and for a folder a `.lock` without a holder.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    begin = f".{path.name}.{socket.gethostname()}-"
    partial = path.with_name(f"{begin}{os.getpid()}.partial")
    with claimed(path) if directory else contextlib.nullcontext():
        for left in path.parent.glob(f"{glob.escape(begin)}*.partial"):
            pid = left.name.removeprefix(begin).removesuffix(".partial")
            if pid.isdecimal() and not _other_runs(int(pid)):
                remove(left)
        if directory:
            partial.mkdir()
        yield partial
        if directory:
            remove(path)
        partial.replace(path)


def _other_runs(pid: int) -> bool:
    """Whether a process of this machine that is not this one is running, or may be."""
    if pid == os.getpid():
        return False
    try:
        os.kill(pid, 0)
        return ") Z " not in Path(f"/proc/{pid}/stat").read_text(encoding="utf-8", errors="replace")
    except ProcessLookupError:
        return False
    except OSError:
        return True


@contextlib.contextmanager
def claimed(path: str | Path) -> Iterator[None]:
    """Hold `path` within the block, so that no other process writes it; the kernel ends the claim.

    A lock on `.<name>.lock` beside it, which names its holder and goes with the process however
    that ends. On a disk without locks nothing is held, and a line says so.

    Raises `InputError` where another claim holds it.
    """
    path = Path(path)
    lock = path.with_name(f".{path.name}.lock")
    lock.parent.mkdir(parents=True, exist_ok=True)
    while True:
        with lock.open("a+", encoding="utf-8") as handle:
            try:
                fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                handle.seek(0)
                holder = handle.read().strip() or "another process"
                raise InputError(
                    f"{path}: {holder} is at work on it and holds {lock}; wait until it has ended, "
                    "or end it, and run again"
                ) from None
            except OSError as error:
                if error.errno not in _NO_LOCKS:
                    raise
                print(f"{lock}: its disk has no locks ({error}); let no two processes write {path}")
            if not _is_at(lock, handle.fileno()):
                continue  # who held it removed it in between; the lock is on nothing
            handle.truncate(0)
            handle.write(f"process {os.getpid()} on {socket.gethostname()}")
            handle.flush()
            try:
                yield
            finally:
                lock.unlink(missing_ok=True)
            return


def _is_at(path: Path, handle: int) -> bool:
    try:
        return os.path.samestat(path.stat(), os.fstat(handle))
    except FileNotFoundError:
        return False


@contextlib.contextmanager
def disk_full_told(what: str, way_out: str) -> Iterator[None]:
    """Turn a full disk, or a quota that is used up, within the block into an `InputError`."""
    try:
        yield
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT):
            raise
        line = str(error).splitlines()[0]
        raise InputError(f"{what}: the disk is full ({line}); {way_out}") from error


def remove(path: Path) -> None:
    """Delete a file, a symbolic link or a folder with its content; nothing if it is absent."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def write_json(path: str | Path, value: Any) -> None:
    """Write `value` as indented JSON, atomically. NaN and infinity are refused (ValueError)."""
    text = json.dumps(value, indent=2, ensure_ascii=False, allow_nan=False)
    with atomic_path(path) as partial:
        partial.write_text(text + "\n", encoding="utf-8")


def write_text(path: str | Path, text: str) -> None:
    """Write `text` as UTF-8, atomically."""
    with atomic_path(path) as partial:
        partial.write_text(text, encoding="utf-8")


def read_json(path: str | Path) -> Any:
    """Read a JSON file; a file that is missing or torn is an InputError that names it."""
    path = Path(path)
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise InputError(f"{path}: no such file") from None
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise InputError(
            f"{path}: not valid JSON ({error}); delete it and run its stage again"
        ) from None


def digest(value: Any) -> str:
    """Return the SHA-256 (hex, 16 characters) of a JSON-able value, independent of key order."""
    text = json.dumps(value, sort_keys=True, ensure_ascii=True, separators=(",", ":"), default=str)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def file_digest(path: str | Path) -> str:
    """Return the SHA-256 (hex, 16 characters) of a file's bytes."""
    with Path(path).open("rb") as handle:
        return hashlib.file_digest(handle, "sha256").hexdigest()[:16]


def folder_digest(folder: str | Path, pattern: str = "*") -> str:
    """Return one digest over names and bytes of the files below `folder` that match `pattern`."""
    folder = Path(folder)
    files = sorted(p for p in folder.rglob(pattern) if p.is_file())
    return digest([[p.relative_to(folder).as_posix(), file_digest(p)] for p in files])


def code_digest(*places: str | Path) -> str:
    """Return a digest of Python modules, and of those below folders; not of comments and layout."""
    trees = []
    for place in map(Path, places):
        for path in [place] if place.is_file() else sorted(place.rglob("*.py")):
            tree = ast.parse(path.read_text(encoding="utf-8"))
            trees.append([path.name, ast.dump(tree)])
    return digest(trees)


def finite(value: float) -> float | None:
    """Return `value`, or None where it is NaN or infinite, so that it can stand in JSON."""
    return float(value) if math.isfinite(value) else None
