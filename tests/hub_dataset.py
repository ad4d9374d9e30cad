"""A dataset as the loopback hub lists it."""

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Dataset:
    """One served dataset: its commit and its files with their sizes."""

    folder: Path
    commit: str
    files: dict[str, int]
    folders: frozenset[str]

    def entries(self, path: str, recursive: bool) -> list[dict] | None:
        """Return what the tree listing of a folder holds, sorted by path; None if it is absent."""
        if path in self.files:
            return [self.entry(path)]
        if path and path not in self.folders:
            return None
        start = f"{path}/" if path else ""
        below = [name for name in (*self.folders, *self.files) if name.startswith(start)]
        if not recursive:
            below = [name for name in below if "/" not in name[len(start) :]]
        return [self.entry(name) for name in sorted(below)]

    def entry(self, name: str) -> dict:
        """Return one path's entry as the tree listing has it."""
        oid = self.oid(name)
        if name in self.folders:
            return {"type": "directory", "oid": oid, "size": 0, "path": name}
        return {"type": "file", "oid": oid, "size": self.files[name], "path": name}

    def oid(self, name: str) -> str:
        """Return a content id of 40 hex digits."""
        return hashlib.sha1(f"{self.commit} {name}".encode()).hexdigest()


def scan(folder: Path) -> Dataset:
    """Return the dataset that a folder holds; its commit follows from names and sizes."""
    files = {
        path.relative_to(folder).as_posix(): path.stat().st_size
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }
    folders = {
        "/".join(name.split("/")[:depth])
        for name in files
        for depth in range(1, name.count("/") + 1)
    }
    commit = hashlib.sha1(json.dumps(files).encode()).hexdigest()
    return Dataset(folder, commit, files, frozenset(folders))
