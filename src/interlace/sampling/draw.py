"""Which rows, and in which order: from the sizes of row groups alone, before any row is read.

Rows are numbered through a subset, groups in the order of shard names, rows in that of the file.
Everything follows from the seed and the subset's name; other subsets, the number of workers and
restarts are no part of it.
"""

from collections.abc import Mapping
from fractions import Fraction
from typing import Any

import numpy as np

from interlace.data.seeds import derive_seed


def sample_size(num_rows: int, settings: Mapping[str, Any]) -> int:
    """Return floor(fraction * rows), at least `min_per_subset`, at most the rows there are.

    The fraction counts as the decimal that is written: 0.29 of 100 rows is 29, not 28.
    """
    share = Fraction(str(settings["fraction"])) * num_rows
    return min(num_rows, max(share.numerator // share.denominator, settings["min_per_subset"]))


class Draw:
    """The rows of one subset in rounds: the sample, then replacements of what was rejected of it.

    `sizes`: rows of each row group. No row is drawn twice.

    - `row`: the next rows of a random permutation.
    - `row_group`: each round those of `allocate` among all rows not drawn yet, every one as likely
      as any other; what is left of a group drawn in part is a group of that size. Rows within a
      group are in random order.
    - `first`: as they stand in the files, which is what the paper's released code takes.

    By `row_group`, where the rows of a group tend to be rejected together, how many rows a round
    replaces depends on which groups the rounds before it drew. What is kept is therefore uniform up
    to a relative deviation of the order of one row group's share of the subset; it is exact where
    no row is rejected, and by `row` always.
    """

    def __init__(self, sizes: np.ndarray, unit: str, seed: int, subset: str) -> None:
        self._sizes, self._unit, self._seed, self._subset = sizes, unit, seed, subset
        num_rows = int(sizes.sum())
        if unit == "row":
            self._order = np.random.default_rng(derive_seed(seed, subset)).permutation(num_rows)
        elif unit == "first":
            self._order = np.arange(num_rows)
        else:
            assert unit == "row_group", unit
            keys = np.random.default_rng(derive_seed(seed, subset, "rows")).random(num_rows)
            self._order = np.lexsort((keys, np.repeat(np.arange(len(sizes)), sizes)))
        self._left = sizes.astype(np.int64)  # of each group, not drawn yet; by `row_group` only
        self._drawn = self._round = 0

    def ranks(self) -> np.ndarray:
        """Return how many rows are drawn before each row; known beforehand but by `row_group`."""
        assert self._unit != "row_group"
        ranks = np.empty(len(self._order), np.int64)
        ranks[self._order] = np.arange(len(self._order))
        return ranks

    def take(self, count: int) -> np.ndarray:
        """Return the next `count` rows in the order they are drawn; fewer where no more are left."""
        count = min(count, len(self._order) - self._drawn)
        if self._unit != "row_group":
            rows = self._order[self._drawn : self._drawn + count]
        else:
            taken, order = allocate(self._left, count, self._seed, self._subset, self._round)
            begins = np.cumsum(self._sizes) - self._left
            groups = order[taken[order] > 0]
            parts = [self._order[begins[g] : begins[g] + taken[g]] for g in groups]
            rows = np.concatenate([np.empty(0, np.int64), *parts])
            self._left -= taken
            self._round += 1
        self._drawn += count
        return rows


def allocate(
    sizes: np.ndarray, target: int, seed: int, subset: str, round: int = 0
) -> tuple[np.ndarray, np.ndarray]:
    """Return how many rows each row group gives, and a random order of the groups.

    Every `round` of replacements has random numbers of its own; 0 is the sample itself.

    The sum is `target`, all groups but at most one give all or none of their rows, and each row of
    the subset is as likely as any other: the expected share of group g is y_g = target n_g / N.

    Sequential pivotal method (Deville and Tille, Biometrika 85, 1998, 89-101), with whole groups
    in place of units: of two undecided groups g and h one takes what it lacks or gives away what it
    has. With probability d_B / (d_A + d_B) d_A = min(n_g - y_g, y_h) moves from h to g, else
    d_B = min(n_h - y_h, y_g) from g to h, which leaves both expectations as they were. Counted in
    whole N-ths of a row, so nothing is rounded.
    """
    num_rows = int(sizes.sum())
    stream = ("groups", str(round)) if round else ("groups",)
    generator = np.random.default_rng(derive_seed(seed, subset, *stream))
    order = generator.permutation(len(sizes))
    if 0 < target <= sizes[sizes > 0].min():
        # No group can be filled before another is decided, so one takes all, by its size.
        taken = np.zeros(len(sizes), np.int64)
        place = generator.integers(num_rows)
        taken[order[np.searchsorted(np.cumsum(sizes[order]), place, side="right")]] = target
        return taken, order
    chances = generator.random(len(sizes)).tolist()
    room = (sizes.astype(object) * num_rows).tolist()  # Python's integers: N^2 outgrows 64 bits
    have = (sizes.astype(object) * target).tolist()
    g = None
    for h, chance in zip(order.tolist(), chances, strict=True):
        if g is not None:
            to_g = min(room[g] - have[g], have[h])
            to_h = min(room[h] - have[h], have[g])
            moved = to_g if chance * (to_g + to_h) < to_h else -to_h
            have[g] += moved
            have[h] -= moved
        if g is None or have[g] in (0, room[g]):
            g = h
    taken = np.array([share // num_rows if num_rows else 0 for share in have], np.int64)
    assert taken.sum() == target, "a sample of another size than was asked for"
    assert ((taken > 0) & (taken < sizes)).sum() <= 1, "more than one row group drawn in part"
    return taken, order


def groups_of(rows: np.ndarray, sizes: np.ndarray) -> np.ndarray:
    """Return the row group of each row."""
    return np.searchsorted(np.cumsum(sizes), rows, side="right")


def rows_per_group(sizes: np.ndarray, target: int, unit: str, seed: int, subset: str) -> np.ndarray:
    """Return how many rows of a sample of `target` rows each row group holds."""
    if unit == "row_group":
        return allocate(sizes, target, seed, subset)[0]
    rows = Draw(sizes, unit, seed, subset).take(target)
    return np.bincount(groups_of(rows, sizes), minlength=len(sizes))
