"""Finished measurements of a TTFT job, kept until all of them are done: a killed job goes on."""

import contextlib
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from interlace.errors import InputError
from interlace.io import claimed, digest, read_json, write_json

Bodies = dict[str, dict[str, Any]]
"""What a benchmark gave, by model."""


class Kept:
    """The measurements in a folder: a file per group of models and benchmark, written when whole."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def groups(self, found: list[list[str]]) -> list[list[str]]:
        """Return the groups of the first attempt, where no more memory is lacking than then.

        Free memory differs a little from one attempt to the next, and with other groups nothing of
        what was measured would serve.
        """
        path = self.folder / "groups.json"
        if path.exists():
            before = read_json(path)
            if len(before) >= len(found):
                return before
        write_json(path, found)
        return found

    def measured(
        self, names: Sequence[str], benchmark: str, measure: Callable[[], Bodies]
    ) -> tuple[Bodies, bool]:
        """Return what `measure` gives for a group on a benchmark, and whether it was kept before."""
        path = self.folder / f"{digest(list(names))}-{benchmark}.json"
        if path.exists():
            bodies = read_json(path)
            if not isinstance(bodies, dict) or set(bodies) != set(names):
                raise InputError(f"{path}: not the measurements of {', '.join(names)}; delete it")
            return bodies, True
        bodies = measure()
        write_json(path, bodies)
        return bodies, False


@contextmanager
def kept(root: Path, key: Mapping[str, Any]) -> Iterator[Kept]:
    """Hold the folder of `key` below `root`; it goes when the block succeeds.

    Whoever asks for the same measurements once they are all done wants them made again.
    """
    folder = root / digest(dict(key))
    with claimed(folder):
        folder.mkdir(parents=True, exist_ok=True)
        others = sum(path.is_dir() and path != folder for path in root.iterdir())
        if others:
            print(
                f"TTFT: {root} holds what {others} other job(s) measured and did not end, of other "
                "variants, settings, code or machine; delete what no job goes on with",
                flush=True,
            )
        yield Kept(folder)
        shutil.rmtree(folder)
    with contextlib.suppress(OSError):  # another job's are in it
        root.rmdir()
