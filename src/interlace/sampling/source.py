"""Where rows come from: a local folder, any address that fsspec knows, or a dataset of a hub.

A hub dataset is `hf://datasets/<org>/<name>[@<revision>]`. Its revision is resolved to a commit
once, and everything after that is read at that commit.
"""

import difflib
import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any
from urllib.parse import quote, unquote

from interlace.errors import InputError
from interlace.io import write_json
from interlace.sampling.ranges import persist
from interlace.secrets import masked, one_line, secret_in

HUB = "hf://datasets/"
_DEEPEST = 6  # folders below the root that are looked into; a split is the second
OWN_FILES = ("manifest.parquet", "samples.json")
"""Of a sample, beside its subsets."""


@dataclass(frozen=True)
class Source:
    """A place with `<subset>/*.parquet` below it.

    `address` names it for good: for a hub dataset with the commit in place of a branch.
    """

    address: str
    revision: str | None  # commit of a hub dataset
    filesystem: Any  # fsspec.AbstractFileSystem
    root: str  # path within the filesystem
    snapshot: bool = False  # files of a hub dataset in the local cache, perhaps not all

    def path(self, subset: str, shard: str) -> str:
        """Return the path of a shard within the filesystem."""
        inside = f"{subset}/{shard}"
        return f"{self.root}/{quote(inside) if _is_http(self.filesystem) else inside}"


@dataclass(frozen=True)
class Shard:
    """A Parquet file of a subset; `name` is its path below the subset, `size` in bytes."""

    subset: str
    name: str
    size: int


def open_source(address: str, retries: int = 8) -> Source:
    """Return the source at `address`; a hub's revision is resolved to a commit here.

    With HF_HUB_OFFLINE set, a hub dataset is read from its snapshot in the local cache.
    Raises `InputError` for an address that is not there, one that takes a package which is not
    installed (named in the error), and one with a password, a token or a signature, since addresses
    are written to plans and tables.
    """
    address = str(address)
    if secret_in(address):
        raise InputError(
            f"{masked(address)}: an address with a password, a token or a query would be written to "
            "plans and tables; leave it out of data.path and set it for fsspec in the environment "
            "(FSSPEC_<PROTOCOL>_<OPTION>) or in its own configuration"
        )
    if address.startswith(HUB):
        return _open_hub(address, retries)
    from fsspec.core import url_to_fs

    try:
        filesystem, root = url_to_fs(address)
    except ImportError as error:
        raise InputError(
            f"{address}: what reads such addresses is not installed ({_lacking(error)}); install it "
            "in this environment, or set data.path to a folder or a hub dataset"
        ) from error
    except ValueError as error:
        raise InputError(
            f"{address}: no installed package can read it ({one_line(error)}); "
            "data.path must be a folder or an address that fsspec knows"
        ) from error
    except OSError as error:  # some connect at once, some load libraries
        raise InputError(
            f"{address}: cannot be opened ({one_line(error)}); check data.path and what fsspec "
            "needs for such addresses"
        ) from error
    return Source(address, None, filesystem, root.rstrip("/"))


def _lacking(error: ImportError) -> str:
    """Return which module fsspec did not find, and what it says of it: the package to install."""
    name = getattr(error.__cause__, "name", None)
    return f"no module `{name.split('.')[0]}`; {one_line(error)}" if name else one_line(error)


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
    return Source(found, commit, LocalFileSystem(), root, snapshot=True)


def list_shards(
    source: Source, subsets: list[str] | None = None, retries: int = 8, only_train: bool = False
) -> tuple[dict[str, list[Shard]], list[str]]:
    """Return the shards of each subset, both in the order of their names, and what is passed over.

    A subset is a folder below the root, its shards the Parquet files in it or in folders of its
    own. Where any of them belongs to a split `train` (its name or its folder begins so), the
    others are other splits and are passed over; with `only_train` they always are. So are Parquet
    files beside the subsets, those deeper than <subset>/<split>/ and hidden ones, whose name or
    folder begins with a dot. `subsets` selects; None for all.

    Raises `InputError` where there is no such folder, no Parquet below it, or a subset of that
    name, for names that are not UTF-8 or those of a sample's own files, and for an offline snapshot
    that lacks shards.
    """
    found = persist(lambda: _find(source), f"{source.address}: listing", retries)
    _keep_listing(source, found)
    listed = _kept_listing(source) or found
    shards, passed_over = _choose(source, listed, subsets, only_train)
    if source.snapshot:
        _check_complete(source, shards, found)
    return shards, passed_over


def cache_folder(source: Source) -> Path | None:
    """Return where what a commit holds is remembered for good; None for sources without one."""
    if source.revision is None:
        return None
    from huggingface_hub import constants

    name = source.address.removeprefix(HUB).replace("/", "--")
    return Path(constants.HF_HOME) / "interlace" / "footers" / name


def _choose(
    source: Source, found: dict[str, int], subsets: list[str] | None, only_train: bool
) -> tuple[dict[str, list[Shard]], list[str]]:
    by_subset: dict[str, list[Shard]] = {}
    elsewhere: list[str] = []
    for path, size in sorted(found.items()):
        subset, _, name = path.partition("/")
        hidden = any(part.startswith(".") for part in path.split("/"))
        if hidden or not name or name.count("/") > 1:
            elsewhere.append(path)
        else:
            by_subset.setdefault(subset, []).append(Shard(subset, name, size))
    if not by_subset:
        hint = f", only {elsewhere[0]}" if elsewhere else ""
        raise InputError(
            f"{source.address}: no <subset>/*.parquet in it{hint}; data.path must name such a folder"
        )
    for name in subsets or ():
        if name not in by_subset:
            near = difflib.get_close_matches(name, by_subset, n=1)
            hint = f"; did you mean '{near[0]}'?" if near else ""
            raise InputError(f"data.subsets: {source.address} has no subset '{name}'{hint}")
    passed_over = [path for path in elsewhere if not subsets or path.split("/")[0] in subsets]
    shards: dict[str, list[Shard]] = {}
    for subset in sorted(set(subsets) if subsets else by_subset):
        _check_name(subset)
        train = [shard for shard in by_subset[subset] if _is_train(shard.name)]
        used = train if train or only_train else by_subset[subset]
        if used:
            shards[subset] = used
        passed_over += [f"{subset}/{s.name}" for s in by_subset[subset] if s not in used]
    for path in (*passed_over, *(f"{s.subset}/{s.name}" for used in shards.values() for s in used)):
        _check_utf8(source, path)
    if not shards:
        raise InputError(f"{source.address}: no shard of a split `train`, such as {passed_over[0]}")
    return shards, passed_over


def _find(source: Source) -> dict[str, int]:
    """Return path below the root -> size of every Parquet file.

    Nothing that fails is left out: fsspec's own `isdir` and `find` take an error for an absence.
    """
    filesystem, root = source.filesystem, source.root
    is_http = _is_http(filesystem)
    try:
        if is_http:  # to which every page is a file
            filesystem.ls(root, detail=False)
        elif filesystem.info(root or "/")["type"] == "file":
            raise NotADirectoryError(root)
    except (FileNotFoundError, NotADirectoryError) as error:
        raise InputError(
            f"{source.address}: no such folder; data.path must name one of subsets"
        ) from error
    if source.address.startswith(HUB) and not source.snapshot:
        files = filesystem.find(root, maxdepth=_DEEPEST, detail=True)
    else:
        files = {info["name"]: info for info in _below(filesystem, root or "/", _DEEPEST)}
    # Some filesystems put a leading slash before what they find, some only before what they're given.
    prefix = f"{root.lstrip('/')}/" if root else ""
    sizes = {path: info["size"] for path, info in files.items() if path.endswith(".parquet")}
    sizes |= _sizes(filesystem, [path for path, size in sizes.items() if size is None])
    found = {path.lstrip("/").removeprefix(prefix): int(size) for path, size in sizes.items()}
    return {unquote(path): size for path, size in found.items()} if is_http else found


def _is_http(filesystem: Any) -> bool:
    protocols = filesystem.protocol
    return "http" in ((protocols,) if isinstance(protocols, str) else protocols)


def _sizes(filesystem: Any, paths: list[str]) -> dict[str, int]:
    """Return the sizes of files that a listing names without: those of a web server's pages."""
    try:
        sizes = dict(zip(paths, filesystem.sizes(paths), strict=True)) if paths else {}
    except FileNotFoundError as error:  # or any other failure, which fsspec doesn't tell apart
        raise ConnectionError(f"{error}: listed, but its size is not to be had") from error
    for path, size in sizes.items():
        if size is None:
            raise InputError(f"{path}: the server does not say how large it is; use a copy of it")
    return sizes


def _below(filesystem: Any, folder: str, depth: int) -> Iterator[dict[str, Any]]:
    """Yield the files below a folder; fsspec's own `walk` takes a folder that fails for empty."""
    for info in filesystem.ls(folder, detail=True):
        name = info["name"].rstrip("/")
        if info["type"] != "directory":
            yield info
        elif depth > 1 and name.strip("/") != folder.strip("/"):
            yield from _below(filesystem, name, depth - 1)


def _listing(source: Source) -> Path | None:
    folder = cache_folder(source)
    return folder / ".listing.json" if folder is not None else None


def _keep_listing(source: Source, found: dict[str, int]) -> None:
    """Remember all that a commit holds, against which an offline snapshot is checked."""
    path = _listing(source)
    if path is None or source.snapshot:
        return
    try:
        write_json(path, found)
    except OSError as error:  # as the cache of footers, it can be done without
        print(f"{path}: cannot be written ({one_line(error)}); the listing is not kept")


def _kept_listing(source: Source) -> dict[str, int] | None:
    path = _listing(source) if source.snapshot else None
    try:
        return json.loads(path.read_text(encoding="utf-8")) if path is not None else None
    except (OSError, ValueError):
        return None  # never listed online, or torn: shard names have to do


def _check_complete(source: Source, shards: dict[str, list[Shard]], found: dict[str, int]) -> None:
    """Check that an offline snapshot holds all shards, by an earlier listing and by their names."""
    lacking: dict[str, list[str]] = {}
    for subset, of_subset in shards.items():
        names = {shard.name for shard in of_subset}
        for name in tuple(names):
            if match := re.fullmatch(r"(.*)-\d{5}-of-(\d{5})(.*)", name):
                count = min(int(match[2]), 10_000)
                names |= {f"{match[1]}-{i:05d}-of-{match[2]}{match[3]}" for i in range(count)}
        sizes = {shard.name: shard.size for shard in of_subset}
        missing = [
            name
            for name in sorted(names)
            if (size := found.get(f"{subset}/{name}")) is None or size != sizes.get(name, size)
        ]
        if missing:
            lacking[subset] = missing
    if not lacking:
        return
    first = next(iter(lacking))
    whole = sorted(set(shards) - set(lacking))
    name = source.address.removeprefix(HUB).split("@")[0]
    choice = (
        f", or choose in data.subsets among {len(whole)} whole ones ({whole[0]}, ...)"
        if whole
        else ""
    )
    raise InputError(
        f"{source.address}: HF_HUB_OFFLINE is set and the local cache lacks "
        f"{sum(map(len, lacking.values()))} shards of {len(lacking)} subsets, first "
        f"{first}/{lacking[first][0]}; fetch them with `hf download --repo-type dataset {name}`{choice}"
    )


def _is_train(name: str) -> bool:
    return any(re.match(r"(partial-)?train(?![a-z])", part) for part in name.split("/"))


def _check_utf8(source: Source, path: str) -> None:
    try:
        path.encode()
    except UnicodeEncodeError:
        raise InputError(
            f"{source.address}: {path!a}: its name is not UTF-8, which a plan is written in; "
            "rename it, or name the other subsets in data.subsets"
        ) from None


def _check_name(subset: str) -> None:
    if subset in OWN_FILES:
        raise InputError(
            f"subset '{subset}': a file of the sample has that name; rename it, or leave it out by "
            "naming the others in data.subsets"
        )
    if re.search(r"[\0-\x1f\\{}]", subset):
        raise InputError(
            f"subset {subset!r}: its name cannot be a file name and a wildcard at once; "
            "leave it out by naming the others in data.subsets"
        )
