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
from interlace.sampling.arc import seeded


def sample_size(num_rows: int, settings: Mapping[str, Any]) -> int:
    """Return floor(fraction * rows), at least `min_per_subset`, at most the rows there are.

    The fraction counts as the decimal that is written: 0.29 of 100 rows is 29, not 28.
    """
    share = Fraction(str(settings["fraction"])) * num_rows
    return min(num_rows, max(share.numerator // share.denominator, settings["min_per_subset"]))


class Draw:
    """The rows of one subset in an order that is known before any is read: units `row` and `first`.

    - `row`: a random permutation.
    - `first`: as they stand in the files, which is what the paper's released code takes.

    What is rejected of the rows taken is replaced by those that follow. By `row_group` the rows
    follow from what the row groups read before hold: `interlace.sampling.arc`.
    """

    def __init__(self, sizes: np.ndarray, unit: str, seed: int, subset: str) -> None:
        """`sizes`: rows of each row group."""
        num_rows = int(sizes.sum())
        if unit == "row":
            self._order = np.random.default_rng(derive_seed(seed, subset)).permutation(num_rows)
        else:
            assert unit == "first", unit
            self._order = np.arange(num_rows)
        self._drawn = 0

    def ranks(self) -> np.ndarray:
        """Return how many rows are drawn before each row."""
        ranks = np.empty(len(self._order), np.int64)
        ranks[self._order] = np.arange(len(self._order))
        return ranks

    def take(self, count: int) -> np.ndarray:
        """Return the next `count` rows in the order they are drawn; fewer where no more are left."""
        rows = self._order[self._drawn : self._drawn + count]
        self._drawn += len(rows)
        return rows


def groups_of(rows: np.ndarray, sizes: np.ndarray) -> np.ndarray:
    """Return the row group of each row."""
    return np.searchsorted(np.cumsum(sizes), rows, side="right")


def expected(
    sizes: np.ndarray, sure: np.ndarray, target: int, unit: str, seed: int, subset: str
) -> tuple[np.ndarray, np.ndarray]:
    """Return how many rows each row group gives and whether it is read, if no row is rejected.

    `sure`: rows of each group that are known not to be (`SubsetFooters.sure`); by `row_group` they
    decide too.
    """
    if unit != "row_group":
        rows = Draw(sizes, unit, seed, subset).take(target)
        taken = np.bincount(groups_of(rows, sizes), minlength=len(sizes))
        return taken, taken > 0
    arc = seeded(sizes, sure, target, seed, subset)
    while groups := arc.wanted():
        for group in groups:
            arc.found(group, min(int(sizes[group]), arc.most(group)))
    taken = np.zeros(len(sizes), np.int64)
    taken[list(arc.gives)] = list(arc.gives.values())
    assert taken.sum() == target, "a sample of another size than was asked for"
    touched = np.zeros(len(sizes), bool)
    touched[list(arc.gives)] = True
    return taken, touched
