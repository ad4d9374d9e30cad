"""The rows of one subset looked at in turn, until enough of them are kept."""

import itertools
from collections.abc import Callable, Iterator
from pathlib import PurePosixPath
from typing import Any

import numpy as np
import pyarrow as pa

from interlace.progress import track
from interlace.sampling.arc import Arc
from interlace.sampling.draw import Draw, groups_of
from interlace.sampling.fetch import Fetcher, Key
from interlace.sampling.index import SubsetFooters
from interlace.sampling.rows import Verdict, examine

Found = Verdict | str
"""What came of a row: a verdict, or why its row group is unreadable."""

_UNREADABLE = {"status": "rejected", "reason": "unreadable_row_group"}


class Walk:
    """Looks at rows, hands those that are kept to `write` and remembers what it saw.

    `rows`: what became of each drawn row, `ids` (id, characters, bytes of each sample made of it)
    in place of `id`. `fetched`: what was asked of `fetch`. `kept`: how many rows were kept.
    """

    def __init__(
        self,
        footers: SubsetFooters,
        settings: dict[str, Any],
        fetch: Fetcher,
        write: Callable[[pa.Table, str], None],
    ) -> None:
        self._footers, self._settings, self._fetch = footers, settings, fetch
        self._write = write
        self._groups = footers.groups
        self._starts = np.cumsum(self._groups["rows"]) - self._groups["rows"]
        self.rows: list[dict[str, Any]] = []
        self.fetched: set[Key] = set()
        self.kept = 0

    def draw(self, draw: Draw, windows: np.ndarray, target: int) -> None:
        """Take as many rows as are missing, then as many as were rejected, and so on."""
        while self.kept < target and len(drawn := draw.take(target - self.kept)):
            ranks = dict(zip(drawn.tolist(), itertools.count(len(self.rows))))
            # Ascending, so that a row group is read once a round and a file in one direction.
            for group, number, values in self._rows(np.sort(drawn), windows):
                rank = ranks[int(self._starts[group]) + number]
                self._record(group, number, _judge(values, self._settings), rank)

    def follow(self, arc: Arc, order: Callable[[int, int], np.ndarray]) -> None:
        """Look at the row groups that `arc` wants and keep of each as many rows as it gives.

        `order`: of a group of a size and number, the order in which its rows are looked at.
        Rejected rows are recorded as far as they were looked at, usable ones only if they are kept.
        """
        looked: dict[int, _Looked] = {}
        while groups := arc.wanted():
            for (group, _), values in self._load([(group, 0) for group in groups]):
                if group not in looked:
                    looked[group] = _Looked(order(int(self._groups["rows"][group]), group))
                most = arc.most(group)
                looked[group].look(values, most, self._settings)
                usable = min(looked[group].usable, most)
                if arc.found(group, usable):
                    self._keep(group, looked.pop(group), usable)
        for group, seen in looked.items():
            self._keep(group, seen, arc.gives[group])

    def entries(self) -> list[dict[str, Any]]:
        """Return the manifest's rows, in drawing order; one for each sample made of a row."""
        return [
            {**entry, "id": name, "num_chars": num_chars, "row_bytes": row_bytes}
            for entry in sorted(self.rows, key=lambda entry: entry["draw"])
            for name, num_chars, row_bytes in entry["ids"]
        ]

    def _rows(self, rows: np.ndarray, windows: np.ndarray) -> Iterator[tuple[int, int, Any]]:
        """Yield (row group, row within it, one-row table or why it is unreadable) of `rows`."""
        groups = groups_of(rows, self._groups["rows"])
        keys = list(zip(groups.tolist(), windows[rows].tolist(), strict=True))
        loaded = self._load(sorted(set(keys)))
        pairs = zip(rows.tolist(), keys, strict=True)
        for group, members in itertools.groupby(pairs, key=lambda pair: pair[1][0]):
            members = list(members)
            tables = dict(next(loaded) for _ in {key for _, key in members})
            places = {key: self._fetch.spooled_rows(key) for key in tables}
            for row, key in members:
                number, values = row - int(self._starts[group]), tables[key]
                if isinstance(values, pa.Table):
                    values = values.slice(int(np.searchsorted(places[key], number)), 1)
                yield group, number, values
        for _ in loaded:  # exhausted, so that the progress reports its end
            raise AssertionError("a row group that no row asked for")

    def _load(self, keys: list[Key]) -> Iterator[tuple[Key, pa.Table | str]]:
        new = [key for key in keys if key not in self.fetched]
        self.fetched.update(new)
        lengths = self._groups["length"] / 1e6
        if not new:
            return self._fetch.fetch(keys)
        return track(
            self._fetch.fetch(keys), f"{self._footers.name}: fetching",
            total=float(sum(lengths[key[0]] for key in keys)), unit="MB",
            amount=lambda item: lengths[item[0][0]],
        )  # fmt: skip

    def _keep(self, group: int, looked: "_Looked", count: int) -> None:
        """Record the rejected rows of a group and the first `count` usable ones."""
        for number, found in looked.rows:
            if not _usable(found):
                self._record(group, number, found, len(self.rows))
            elif count:
                self._record(group, number, found, len(self.rows))
                count -= 1
        assert not count, "a row group that gives more rows than it was seen to have"

    def _record(self, group: int, number: int, found: Found, rank: int) -> None:
        """Write the samples made of a row, if any, and note what became of it."""
        shard = str(self._groups["shard"][group])
        row_group = int(self._groups["row_group"][group])
        stem = PurePosixPath(shard).with_suffix("")
        name = f"{self._footers.name}/{stem}/{row_group}/{number}"
        place = {
            "subset": self._footers.name, "shard": shard, "row_group": row_group, "row": number,
            "draw": rank,
        }  # fmt: skip
        if isinstance(found, str):
            entry = _UNREADABLE | {"detail": found} | place
            self.rows.append(entry | {"ids": [(name, None, None)]})
            return
        ids = [(name, found.entry["num_chars"], None)]
        if found.rows:
            named = [name + suffix for suffix in found.suffixes]
            row_bytes = [row.nbytes for row in found.rows]
            ids = list(zip(named, found.num_chars, row_bytes, strict=True))
            self.kept += 1
        for (row_name, *_), row in zip(ids, found.rows, strict=False):
            self._write(row, row_name)
        self.rows.append(found.entry | place | {"ids": ids})


class _Looked:
    """What was found so far in the rows of one row group; `usable`: how many are."""

    def __init__(self, order: np.ndarray) -> None:
        self._left = iter(order.tolist())
        self.rows: list[tuple[int, Found]] = []
        self.usable = 0

    def look(self, values: pa.Table | str, most: int, settings: dict[str, Any]) -> None:
        """Look at further rows until `most` are usable, or at all."""
        while self.usable < most and (number := next(self._left, None)) is not None:
            row = values.slice(number, 1) if isinstance(values, pa.Table) else values
            found = _judge(row, settings)
            self.rows.append((number, found))
            self.usable += _usable(found)


def _judge(values: pa.Table | str, settings: dict[str, Any]) -> Found:
    return values if isinstance(values, str) else examine(values, settings)


def _usable(found: Found) -> bool:
    return isinstance(found, Verdict) and bool(found.rows)
