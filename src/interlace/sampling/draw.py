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


def row_order(sizes: np.ndarray, target: int, unit: str, seed: int, subset: str) -> np.ndarray:
    """Return all rows of a subset in the order they are drawn.

    The first `target` are the sample, those after it replace rejected ones, one by one. `sizes`:
    rows of each row group.

    - `row`: a random permutation.
    - `row_group`: the row groups of `allocate` that are drawn whole, in random order; the one that
      is drawn in part, its drawn rows first; the others in random order. Rows within a group are in
      random order.
    - `first`: as they stand in the files, which is what the paper's released code takes.
    """
    num_rows = int(sizes.sum())
    if unit == "row":
        return np.random.default_rng(derive_seed(seed, subset)).permutation(num_rows)
    if unit == "first":
        return np.arange(num_rows)
    assert unit == "row_group", unit
    taken, order = allocate(sizes, target, seed, subset)
    # Whole groups, the partial one, the rest; each kind in the random order of the groups.
    kind = np.where(taken == 0, 2, np.where(taken == sizes, 0, 1))[order]
    rank = np.empty(len(sizes), np.int64)
    rank[order[np.argsort(kind, kind="stable")]] = np.arange(len(sizes))
    keys = np.random.default_rng(derive_seed(seed, subset, "rows")).random(num_rows)
    return np.lexsort((keys, np.repeat(rank, sizes)))


def allocate(
    sizes: np.ndarray, target: int, seed: int, subset: str
) -> tuple[np.ndarray, np.ndarray]:
    """Return how many rows each row group gives, and a random order of the groups.

    The sum is `target`, all groups but at most one give all or none of their rows, and each row of
    the subset is as likely as any other: the expected share of group g is y_g = target n_g / N.

    Sequential pivotal method (Deville and Tille, Biometrika 85, 1998, 89-101), with whole groups
    in place of units: of two undecided groups g and h one takes what it lacks or gives away what it
    has. With probability d_B / (d_A + d_B) d_A = min(n_g - y_g, y_h) moves from h to g, else
    d_B = min(n_h - y_h, y_g) from g to h, which leaves both expectations as they were. Counted in
    whole N-ths of a row, so nothing is rounded.
    """
    num_rows = int(sizes.sum())
    generator = np.random.default_rng(derive_seed(seed, subset, "groups"))
    order = generator.permutation(len(sizes))
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
    """Return how many of the first `target` rows of `row_order` each row group holds."""
    if unit == "row_group":
        return allocate(sizes, target, seed, subset)[0]
    rows = row_order(sizes, target, unit, seed, subset)[:target]
    return np.bincount(groups_of(rows, sizes), minlength=len(sizes))
