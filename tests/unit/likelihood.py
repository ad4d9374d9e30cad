"""Whether rows are as likely as each other, over many seeds."""

import numpy as np
from scipy.stats import f as f_distribution

from interlace.sampling.arc import rows_in_order, seeded

SEEDS = 2000
UNEQUAL = np.array([7, 1, 12, 4, 9, 3])  # 36 rows


def draw_arc(sizes, usable, target, seed, sure=None):
    """Return the rows of a sample by row groups, and the groups that are read for it.

    `usable`: whether each row is; `sure`: of each group, by default the rows that are.
    """
    begins = np.cumsum(sizes) - sizes
    orders, given, counts = {}, set(), np.add.reduceat(np.append(usable, 0), begins) * (sizes > 0)
    arc = seeded(sizes, counts if sure is None else sure, target, seed, "s")
    while groups := arc.wanted():
        for group in groups:
            rows = begins[group] + rows_in_order(sizes[group], group, seed, "s")
            orders[group] = rows[usable[rows]]
            assert group not in given, "it gave all its rows before"
            if arc.found(group, min(len(orders[group]), arc.most(group))):
                given.add(group)
    rows = [orders[group][:count] for group, count in arc.gives.items()]
    return np.concatenate([np.empty(0, np.int64), *rows]), list(orders)


def as_likely(draws, expected):
    """Check means of rows of `draws` against what is expected.

    A chi-square with the covariance estimated from the draws themselves: Hotelling's T-squared.
    """
    count, degrees = draws.shape
    away = draws.mean(axis=0) - expected
    # In a small set some sums of rows never vary; they must agree exactly.
    values, vectors = np.linalg.eigh(np.cov(draws.T))
    varies = values > 1e-9
    assert np.abs(vectors[:, ~varies].T @ away).max(initial=0) < 1e-9
    degrees = int(varies.sum())
    statistic = count * ((vectors[:, varies].T @ away) ** 2 / values[varies]).sum()
    scaled = statistic * (count - degrees) / (degrees * (count - 1))
    assert f_distribution.sf(scaled, degrees, count - degrees) > 1e-3
