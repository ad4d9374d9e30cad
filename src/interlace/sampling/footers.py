"""What the footers of a data set's shards say, read by range requests and nothing else.

A footer is asked for by the last bytes of its file; if it is longer, once more. What it says is
noted in a journal as it comes and saved by subset at the end, so that a killed reading goes on from
where it was. A footer of no use is read again, in case the network spoiled it, and its refusal
is never saved. Those of a commit are kept as they are too (`interlace.sampling.footer_store`), since
decoding a row group takes its shard's.
"""

import json
import os
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from interlace.progress import track
from interlace.sampling.footer_parser import PARSER, SPAN, pack, unpack
from interlace.sampling.footer_store import FooterStore
from interlace.sampling.index import GROUPS, SubsetFooters, load_index, save_index
from interlace.sampling.ranges import RangeReader, fingerprint
from interlace.sampling.rows import schema_complaint
from interlace.sampling.schemas import unify
from interlace.sampling.source import Shard, Source

FIRST_GUESS = 48 * 1024  # twenty row groups of FineVision's thirteen columns need about 40 kB
MOST_FOOTER = 64 * 1024**2  # bytes; two thousand row groups of a hundred columns need less
_MAGIC = 8  # bytes of footer length and magic number at the end of a file


def read_footers(
    source: Source,
    shards: dict[str, list[Shard]],
    settings: dict[str, Any],
    reader: RangeReader,
    cache: Path,
) -> list[SubsetFooters]:
    """Return the footers of every subset; what `cache` has of the same files is not read again.

    `settings`: `workers` requests at a time, `format` for the columns that a shard needs. A shard
    that is no Parquet file, lacks a column or contradicts the others is refused, with the reason.
    Raises `InputError` where a shard cannot be fetched.
    """
    store = FooterStore(cache) if source.revision is not None else None
    known = {name: _load(cache, name, files) for name, files in shards.items()}
    journal = _Journal(cache)
    unsaved = set()
    for footer in journal.load(shards):
        known[footer.shard.subset][footer.shard.name] = footer
        unsaved.add(footer.shard.subset)
    guesses = _Guesses()
    with ThreadPoolExecutor(settings["workers"]) as pool:
        read = partial(
            _read_shards, pool, partial(_read_shard, source, reader, guesses, store, journal)
        )
        missing = [s for name, files in shards.items() for s in files if s.name not in known[name]]
        try:
            read(known, missing)
            found = {name: _gather(known[name], files) for name, files in shards.items()}
            doubted = _doubted(found, shards, settings)
            if doubted:
                read(known, doubted, again=True)
                for name in {shard.subset for shard in doubted}:
                    found[name] = _gather(known[name], shards[name])
        except BaseException:
            reader.stop()
            pool.shutdown(cancel_futures=True)
            raise
    for name in sorted(unsaved | {shard.subset for shard in (*missing, *doubted)}):
        _save(cache, name, known[name])
    journal.remove()
    return [_refuse_unusable(subset, settings) for subset in found.values()]


def _read_shards(
    pool: ThreadPoolExecutor,
    read: Callable[[Shard, "_Footer | None"], "_Footer"],
    known: dict[str, dict[str, "_Footer"]],
    shards: list[Shard],
    again: bool = False,
) -> None:
    """Read footers into `known`; `again`: those there are doubted."""
    if not shards:
        return
    doubted = [known[shard.subset][shard.name] if again else None for shard in shards]
    done = as_completed([pool.submit(read, *pair) for pair in zip(shards, doubted, strict=True)])
    for future in track(done, "reading footers", total=len(shards), unit="shard"):
        footer = future.result()
        known[footer.shard.subset][footer.shard.name] = footer


def _doubted(
    found: dict[str, SubsetFooters], shards: dict[str, list[Shard]], settings: dict[str, Any]
) -> list[Shard]:
    """Return the shards whose footer is whole but of no use: a flipped letter may be all of it."""
    doubted = []
    for name, subset in found.items():
        why = _refuse_unusable(subset, settings).refused
        doubted += [s for s in shards[name] if s.name in why and s.name not in subset.refused]
    return doubted


# -- one shard ----------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Footer:
    shard: Shard
    refused: str | None = None
    length: int = 0
    digest: str | None = None
    schema: str = ""
    groups: np.ndarray | None = None  # (row groups, columns of SPAN)


class _Guesses:
    """How long the next footer of a subset will be, from those before it."""

    def __init__(self) -> None:
        self._longest: dict[str, int] = {}
        self._lock = threading.Lock()

    def of(self, subset: str) -> int:
        longest = self._longest.get(subset)
        return FIRST_GUESS if longest is None else longest + longest // 16

    def learn(self, subset: str, length: int) -> None:
        with self._lock:
            self._longest[subset] = max(length, self._longest.get(subset, 0))


class _Journal:
    """Footers as they come, a line each, until all are saved; shared by threads and processes.

    Each line is appended by one write, so that a kill leaves it whole or, at worst, torn, and a torn
    one is as none.
    """

    def __init__(self, cache: Path) -> None:
        self._path = cache / ".journal"

    def add(self, footer: _Footer) -> None:
        assert footer.refused is None, "a refusal is never kept"
        assert footer.groups is not None
        shard = footer.shard
        entry = {
            "shard": [shard.subset, shard.name, shard.size],
            "footer": [footer.length, footer.digest, footer.schema],
            "span": list(SPAN),
            "groups": footer.groups.tolist(),
        }
        self._path.parent.mkdir(parents=True, exist_ok=True)
        # A line that was torn before ends here, too.
        line = b"\n" + json.dumps(entry, separators=(",", ":")).encode() + b"\n"
        with self._path.open("ab", buffering=0) as file:
            file.write(line)

    def load(self, shards: dict[str, list[Shard]]) -> list[_Footer]:
        """Return what is known of these very files, the latest of each last."""
        wanted = {shard for files in shards.values() for shard in files}
        found = []
        try:
            lines = self._path.read_bytes().splitlines()
        except FileNotFoundError:
            return []
        for line in lines:
            try:
                entry = json.loads(line)
                shard, (length, digest, schema) = Shard(*entry["shard"]), entry["footer"]
                groups = np.array(entry["groups"], np.int64).reshape(-1, len(SPAN))
            except (ValueError, KeyError, TypeError):
                continue  # torn, or a blank line
            if shard in wanted and entry["span"] == list(SPAN):
                found.append(_Footer(shard, None, length, digest, schema, groups))
        return found

    def remove(self) -> None:
        self._path.unlink(missing_ok=True)


def _read_shard(
    source: Source,
    reader: RangeReader,
    guesses: _Guesses,
    store: FooterStore | None,
    journal: _Journal,
    shard: Shard,
    doubted: _Footer | None = None,
) -> _Footer:
    """Read and note a footer; one of no use is refused once it came the same twice.

    `doubted`: what was read before, of which the same is to be found out.
    """
    if shard.size < 12:
        return _Footer(shard, f"truncated or not Parquet ({shard.size} bytes)")
    path = source.path(shard.subset, shard.name)
    asked = min(shard.size, max(guesses.of(shard.subset), _MAGIC))
    read, found = partial(_read_end, path, reader, asked, shard.size), doubted
    for end in reader.bodies(f"{path}: footer", read, doubted.digest if doubted else None):
        found = _parse(end, shard)
        if found.refused is None:
            guesses.learn(shard.subset, found.length)
            if store is not None:
                store.put(found.digest, end)
            if doubted is None:
                break
    if found.refused is None:
        journal.add(found)
    return found


def _announced(end: bytes, size: int) -> int | str:
    """Return how long the footer is that ends like this, or what is wrong with it."""
    length = int.from_bytes(end[-8:-4], "little") + _MAGIC
    if end[-4:] != b"PAR1" or length > size:
        return "truncated or not Parquet (it does not end in a footer)"
    if length > MOST_FOOTER:
        return f"announces a footer of {length} bytes; at most {MOST_FOOTER} are read"
    return length


def _read_end(path: str, reader: RangeReader, asked: int, size: int) -> bytes:
    """Return the footer of a file, or its last `asked` bytes where they announce none of use."""
    end = reader.read(path, size - asked, asked)
    length = _announced(end, size)
    if isinstance(length, str):
        return end
    if length > asked:
        end = reader.read(path, size - length, length - asked) + end
    return end[-length:]


def _parse(end: bytes, shard: Shard) -> _Footer:
    length = _announced(end, shard.size)
    if isinstance(length, str):
        return _Footer(shard, length)
    parsed = PARSER.parse(end, shard.size)
    if parsed.refused is not None:
        return _Footer(shard, parsed.refused)
    return _Footer(shard, None, length, fingerprint(end), parsed.schema, parsed.groups)


def fetch_footer(
    reader: RangeReader, path: str, size: int, length: int, digest: str
) -> bytes | None:
    """Return the footer that was planned with, or None if the file's is another.

    `size`: of the file; `length`, `digest`: of the footer. Raises `InputError` where the bytes
    are others each time.
    """
    for footer in reader.bodies(
        f"{path}: footer", partial(reader.read, path, size - length, length)
    ):
        if fingerprint(footer) == digest:
            return footer
    return None


def _gather(known: dict[str, _Footer], files: list[Shard]) -> SubsetFooters:
    name, footers = files[0].subset, [known[shard.name] for shard in files]
    schemas: dict[str, int] = {}
    columns: dict[str, list[np.ndarray | list[Any]]] = {field: [] for field in GROUPS.names}
    for footer in footers:
        nothing = np.zeros((0, len(SPAN)), np.int64)
        groups = footer.groups if footer.groups is not None else nothing
        numbers = np.arange(len(groups))
        if not len(groups):
            groups, numbers = np.zeros((1, len(SPAN)), np.int64), np.array([-1])
        schema = schemas.setdefault(footer.schema, len(schemas)) if footer.schema else -1
        for field, value in (
            ("subset", name), ("shard", footer.shard.name), ("size", footer.shard.size),
            ("footer", footer.length), ("digest", footer.digest), ("schema", schema),
            ("refused", footer.refused),
        ):  # fmt: skip
            columns[field].append([value] * len(groups))
        for field, values in zip(("row_group", *SPAN), (numbers, *groups.T), strict=True):
            columns[field].append(values)
    arrays = [
        pa.chunked_array([pa.array(part, field.type) for part in columns[field.name]], field.type)
        for field in GROUPS
    ]
    table = pa.Table.from_arrays(arrays, schema=GROUPS).combine_chunks()
    return SubsetFooters(name, table, tuple(unpack(text) for text in schemas))


# -- what of it is usable -----------------------------------------------------------------------


def _refuse_unusable(subset: SubsetFooters, settings: dict[str, Any]) -> SubsetFooters:
    """Refuse the shards whose columns lack what a row needs or contradict the other shards'."""
    why: dict[int, str] = {}
    for number, schema in enumerate(subset.schemas):
        problem = schema_complaint(schema, settings)
        if problem is not None:
            why[number] = problem
    rest = np.array([i for i in range(len(subset.schemas)) if i not in why], dtype=np.int64)
    used = subset.by_rows(rest)
    why |= {used[k]: text for k, text in unify([subset.schemas[i] for i in used])[1].items()}
    if not why:
        return subset
    refused = [
        text if text is not None else why.get(schema)
        for text, schema in zip(
            subset.table["refused"].to_pylist(), subset.table["schema"].to_pylist(), strict=True
        )
    ]
    place = subset.table.schema.get_field_index("refused")
    table = subset.table.set_column(place, GROUPS.field("refused"), pa.array(refused, pa.string()))
    return SubsetFooters(subset.name, table, subset.schemas)


def forget(cache: Path, subset: str) -> None:
    """Remove what `cache` has of a subset that is not what it was; raises `OSError`."""
    (cache / f"{subset}.parquet").unlink(missing_ok=True)
    _Journal(cache).remove()


def _save(cache: Path, name: str, known: dict[str, _Footer]) -> None:
    """Keep the footers of use; other processes may do the same at the same time."""
    good = {shard: known[shard] for shard in sorted(known) if known[shard].refused is None}
    if good:
        mine = cache / f".{name}.{os.getpid()}"
        save_index(mine, [_gather(good, [footer.shard for footer in good.values()])])
        mine.replace(cache / f"{name}.parquet")


def _load(cache: Path, name: str, files: list[Shard]) -> dict[str, _Footer]:
    """Return what `cache` has of these very files of a subset; a torn file is as none."""
    path = cache / f"{name}.parquet"
    try:
        found = load_index(path)
        schemas = [pack(schema) for schema in found[0].schemas]
    except (OSError, pa.ArrowException, KeyError, ValueError, IndexError):
        return {}
    table = found[0].table
    if len(found) != 1 or found[0].name != name or table.schema != GROUPS:
        return {}
    columns = {field: table[field].to_pylist() for field in GROUPS.names}
    spans = np.stack([table[field].to_numpy() for field in SPAN], 1)
    shards = columns["shard"]
    bounds = [i for i in range(len(shards)) if i == 0 or shards[i] != shards[i - 1]]
    wanted = {shard.name: shard for shard in files}
    footers = {}
    for a, b in zip(bounds, [*bounds[1:], len(shards)], strict=True):
        shard = wanted.get(shards[a])
        if shard is not None and shard.size == columns["size"][a]:
            groups = spans[a:b] if columns["row_group"][a] >= 0 else spans[:0]
            footers[shard.name] = _Footer(
                shard, None, columns["footer"][a], columns["digest"][a],
                schemas[columns["schema"][a]], groups,
            )  # fmt: skip
    return footers
