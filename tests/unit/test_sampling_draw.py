"""The draw: exact counts, every row as likely as any other, and no row twice."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import f as f_distribution

from interlace.sampling.draw import allocate, groups_of, row_order, rows_per_group, sample_size

SEEDS = 2000
UNEQUAL = np.array([7, 1, 12, 4, 9, 3])  # 36 rows


@given(st.integers(0, 10_000), st.integers(1, 100), st.integers(0, 5))
def test_sample_size_counts_the_fraction_as_written(rows, percent, least):
    size = sample_size(rows, {"fraction": percent / 100, "min_per_subset": least})
    assert size == min(rows, max(rows * percent // 100, least))


@st.composite
def subsets(draw):
    sizes = np.array(draw(st.lists(st.integers(0, 30), min_size=1, max_size=20)))
    return sizes, draw(st.integers(0, int(sizes.sum())))


@given(subsets(), st.sampled_from(["row", "row_group", "first"]), st.integers(0, 99))
def test_an_order_holds_every_row_once_and_starts_with_the_sample(subset, unit, seed):
    sizes, target = subset
    order = row_order(sizes, target, unit, seed, "s")
    assert sorted(order) == list(range(sizes.sum()))
    drawn = np.bincount(groups_of(order[:target], sizes), minlength=len(sizes))
    assert drawn.tolist() == rows_per_group(sizes, target, unit, seed, "s").tolist()
    if unit == "first":
        assert order.tolist() == sorted(order)


@given(subsets(), st.integers(0, 99))
def test_row_groups_are_drawn_whole_but_for_one_whose_rest_replaces_first(subset, seed):
    sizes, target = subset
    taken, _ = allocate(sizes, target, seed, "s")
    assert taken.sum() == target
    partial = np.flatnonzero((taken > 0) & (taken < sizes))
    assert len(partial) <= 1
    order = groups_of(row_order(sizes, target, "row_group", seed, "s"), sizes)
    assert np.sum(order[1:] != order[:-1]) == max(0, np.count_nonzero(sizes) - 1)  # one run each
    if len(partial):
        rest = sizes[partial[0]] - taken[partial[0]]
        assert (order[target : target + rest] == partial[0]).all()


@pytest.mark.parametrize("target", [1, 9, 20, 35])
@pytest.mark.parametrize(
    "sizes", [np.full(6, 6), UNEQUAL], ids=["equal row groups", "unequal row groups"]
)
@pytest.mark.parametrize("unit", ["row", "row_group"])
def test_every_row_is_as_likely_as_any_other(unit, sizes, target):
    """Chi-square of the rows' inclusion frequencies over 2,000 seeds against the fraction.

    Rows of one row group are drawn together, so the frequencies are not independent. Their
    covariance is therefore estimated from the same draws: Hotelling's T-squared, which for a known
    covariance is the chi-square, on the first N - 1 rows (the sum of all is fixed).
    """
    num_rows = int(sizes.sum())
    seen = np.zeros((SEEDS, num_rows))
    for seed in range(SEEDS):
        seen[seed, row_order(sizes, target, unit, seed, "s")[:target]] = 1
    assert (seen.sum(axis=1) == target).all()
    _as_likely(seen[:, :-1], np.full(num_rows - 1, target / num_rows))


@pytest.mark.parametrize("target", [9, 20])
def test_every_row_group_gives_its_share_on_average(target):
    shares = np.array([rows_per_group(UNEQUAL, target, "row_group", seed, "s") for seed in
                       range(SEEDS)])  # fmt: skip
    _as_likely(shares[:, :-1].astype(float), UNEQUAL[:-1] * target / UNEQUAL.sum())


def _as_likely(draws, expected):
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


def test_the_likelihood_test_notices_a_bias():
    rng = np.random.default_rng(0)
    draws = (rng.random((SEEDS, 20)) < np.where(np.arange(20) == 3, 0.32, 0.25)).astype(float)
    with pytest.raises(AssertionError):
        _as_likely(draws, np.full(20, 0.25))


def test_seed_and_name_decide_and_nothing_else():
    def drawn(seed, name):
        return row_order(UNEQUAL, 10, "row_group", seed, name)[:10].tolist()

    assert drawn(0, "a") == drawn(0, "a")
    assert drawn(0, "a") != drawn(1, "a")
    assert drawn(0, "a") != drawn(0, "b")


def test_the_largest_subset_is_drawn_exactly():
    sizes = np.append(np.full(42_338, 100), 53)  # text_openorca: 4,233,853 rows
    taken, _ = allocate(sizes, 42_338, 0, "text_openorca")
    assert taken.sum() == 42_338
    assert 423 <= np.count_nonzero(taken) <= 425
