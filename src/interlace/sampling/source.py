"""Where rows come from: a local folder, any address that fsspec knows, or a dataset of a hub.

A hub dataset is `hf://datasets/<org>/<name>[@<revision>]`. Its revision is resolved to a commit
once, and everything after that is read at that commit.
"""

import difflib
import re
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import Any

from interlace.errors import InputError
from interlace.sampling.ranges import one_line, persist

HUB = "hf://datasets/"


@dataclass(frozen=True)
class Source:
    """A place with `<subset>/*.parquet` below it.

    `address` names it for good: for a hub dataset with the commit in place of a branch.
    """

    address: str
    revision: str | None  # commit of a hub dataset
    filesystem: Any  # fsspec.AbstractFileSystem
    root: str  # path within the filesystem

    def path(self, subset: str, shard: str) -> str:
        """Return the path of a shard within the filesystem."""
        return f"{self.root}/{subset}/{shard}"


@dataclass(frozen=True)
class Shard:
    """A Parquet file of a subset; `name` is its path below the subset, `size` in bytes."""

    subset: str
    name: str
    size: int


def open_source(address: str, retries: int = 8) -> Source:
    """Return the source at `address`; a hub's revision is resolved to a commit here.

    With HF_HUB_OFFLINE set, a hub dataset is read from its snapshot in the local cache.
    Raises `InputError` for an address that is not there or that no installed package can read.
    """
    address = str(address)
    if address.startswith(HUB):
        return _open_hub(address, retries)
    from fsspec.core import url_to_fs

    try:
        filesystem, root = url_to_fs(address)
    except (ImportError, ValueError) as error:
        raise InputError(
            f"{address}: no installed package can read it ({one_line(error)}); "
            "data.path must be a folder or an address that fsspec knows"
        ) from error
    return Source(address, None, filesystem, root.rstrip("/"))


def _open_hub(address: str, retries: int) -> Source:
    from huggingface_hub import HfApi, constants
    from huggingface_hub.utils import HFValidationError, parse_hf_uri

    try:
        parsed = parse_hf_uri(address)
    except (ValueError, HFValidationError) as error:
        raise InputError(
            f"{address}: no hub dataset ({one_line(error)}); data.path must be <org>/<name>"
        ) from error
    if constants.is_offline_mode():
        return _open_snapshot(address, parsed.id, parsed.revision, parsed.path_in_repo)
    from interlace.sampling.hub import HubFiles

    commit = parsed.revision
    if not re.fullmatch("[0-9a-f]{40}", commit or ""):
        limit = constants.HF_HUB_DOWNLOAD_TIMEOUT
        commit = persist(
            lambda: HfApi().dataset_info(parsed.id, revision=commit, timeout=limit).sha,
            address,
            retries,
        )
    root = f"datasets/{parsed.id}@{commit}"
    if parsed.path_in_repo:
        root = f"{root}/{parsed.path_in_repo}"
    return Source(f"hf://{root}", commit, HubFiles(), root)


def _open_snapshot(address: str, name: str, revision: str | None, inside: str) -> Source:
    from fsspec.implementations.local import LocalFileSystem
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import LocalEntryNotFoundError

    try:
        folder = snapshot_download(
            name, repo_type="dataset", revision=revision, local_files_only=True
        )
    except LocalEntryNotFoundError as error:
        raise InputError(
            f"{address}: HF_HUB_OFFLINE is set and the local cache holds no snapshot of it; unset "
            "HF_HUB_OFFLINE, or fetch the dataset with `hf download --repo-type dataset`"
        ) from error
    commit = PurePosixPath(folder).name
    found = f"{HUB}{name}@{commit}" + (f"/{inside}" if inside else "")
    root = f"{folder}/{inside}".rstrip("/")
    return Source(found, commit, LocalFileSystem(), root)


def list_shards(
    source: Source, subsets: list[str] | None = None, retries: int = 8, only_train: bool = False
) -> tuple[dict[str, list[Shard]], list[str]]:
    """Return the shards of each subset, both in the order of their names, and what is passed over.

    A subset is a folder below the root, its shards the Parquet files in it or in folders of its
    own. Where any of them belongs to a split `train` (its name or its folder begins so), the
    others are other splits and are passed over; with `only_train` they always are. `subsets`
    selects; None for all.

    Raises `InputError` where there is no such folder, no Parquet below it, or a subset of that
    name.
    """
    found = persist(lambda: _find(source), f"{source.address}: listing", retries)
    by_subset: dict[str, list[Shard]] = {}
    for path, size in sorted(found.items()):
        subset, _, name = path.partition("/")
        if name and not any(part.startswith(".") for part in (subset, *name.split("/"))):
            by_subset.setdefault(subset, []).append(Shard(subset, name, size))
    if not by_subset:
        raise InputError(
            f"{source.address}: no <subset>/*.parquet in it; data.path must name such a folder"
        )
    for name in subsets or ():
        if name not in by_subset:
            near = difflib.get_close_matches(name, by_subset, n=1)
            hint = f"; did you mean '{near[0]}'?" if near else ""
            raise InputError(f"data.subsets: {source.address} has no subset '{name}'{hint}")
    passed_over: list[str] = []
    shards: dict[str, list[Shard]] = {}
    for subset in sorted(set(subsets) if subsets else by_subset):
        _check_name(subset)
        train = [shard for shard in by_subset[subset] if _is_train(shard.name)]
        used = train if train or only_train else by_subset[subset]
        if used:
            shards[subset] = used
        passed_over += [f"{subset}/{s.name}" for s in by_subset[subset] if s not in used]
    if not shards:
        raise InputError(f"{source.address}: no shard of a split `train`, such as {passed_over[0]}")
    return shards, passed_over


def _find(source: Source) -> dict[str, int]:
    """Return path below the root -> size of every Parquet file."""
    filesystem, root = source.filesystem, source.root
    if not filesystem.isdir(root or "/"):
        raise InputError(f"{source.address}: no such folder; data.path must name one of subsets")
    found = filesystem.find(root, maxdepth=3, detail=True)
    # Some filesystems put a leading slash before what they find, some only before what they're given.
    prefix = f"{root.lstrip('/')}/" if root else ""
    return {
        path.lstrip("/").removeprefix(prefix): int(info["size"])
        for path, info in found.items()
        if path.endswith(".parquet")
    }


def _is_train(name: str) -> bool:
    return any(re.match(r"(partial-)?train(?![a-z])", part) for part in name.split("/"))


def _check_name(subset: str) -> None:
    if re.search(r"[\0-\x1f\\{}]", subset):
        raise InputError(
            f"subset {subset!r}: its name cannot be a file name and a wildcard at once; "
            "leave it out by naming the others in data.subsets"
        )
