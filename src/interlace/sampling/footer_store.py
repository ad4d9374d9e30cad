"""Footers as they were read, each in a file of its own named by its digest.

A row group cannot be decoded without its shard's footer. Planning has read it, so where a commit
says that shards stay what they are, what fetches row groups need not ask again. Compressed, a
footer of twenty row groups of FineVision's columns takes 3 to 14 kB: at most 0.2 GB for all 12,562
shards, as against 5 TB.
"""

import os
import threading
from pathlib import Path

import pyarrow as pa

from interlace.io import remove
from interlace.sampling.ranges import fingerprint

FOLDER = "footers"
_CODEC = "zstd"


class FooterStore:
    """Reads footers from below several folders and writes them below the last; shared by threads."""

    def __init__(self, *folders: Path) -> None:
        self._folders = [folder / FOLDER for folder in folders]

    def get(self, digest: str, length: int) -> bytes | None:
        """Return the footer of `length` bytes with this digest; None where none is whole."""
        for folder in self._folders:
            try:
                packed = (folder / digest).read_bytes()
                footer = pa.decompress(packed, length, codec=_CODEC, asbytes=True)
            except (OSError, pa.ArrowException):
                continue  # absent, torn, or of a disk that fails: it can be fetched
            if fingerprint(footer) == digest:
                return footer
        return None

    def put(self, digest: str, footer: bytes) -> None:
        """Keep a footer; threads and processes may keep the same at the same time."""
        path = self._folders[-1] / digest
        if path.exists():
            return
        path.parent.mkdir(parents=True, exist_ok=True)
        mine = path.with_name(f".{digest}.{os.getpid()}.{threading.get_ident()}")
        mine.write_bytes(pa.compress(footer, codec=_CODEC, asbytes=True))
        mine.replace(path)


def move_footers(source: Path, target: Path) -> None:
    """Move the footers kept below one folder to below another, in place of what is there."""
    if (source / FOLDER).exists():
        remove(target / FOLDER)
        (source / FOLDER).replace(target / FOLDER)
