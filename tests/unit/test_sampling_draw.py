"""The draw: exact counts, every row as likely as any other, and no row twice."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import chi2
from scipy.stats import f as f_distribution

from interlace.sampling.draw import Draw, allocate, groups_of, rows_per_group, sample_size

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


@given(
    subsets(),
    st.sampled_from(["row", "row_group", "first"]),
    st.integers(0, 99),
    st.lists(st.integers(1, 40), max_size=9),
)
def test_rounds_hold_no_row_twice_and_begin_with_the_sample(subset, unit, seed, more):
    sizes, target = subset
    draw = Draw(sizes, unit, seed, "s")
    rounds = [draw.take(count) for count in (target, *more, 1000)]
    rows = np.concatenate(rounds)
    assert sorted(rows) == list(range(sizes.sum()))
    left = sizes.sum()
    for count, drawn in zip((target, *more, 1000), rounds, strict=True):
        assert len(drawn) == min(count, left)
        left -= len(drawn)
    groups = np.bincount(groups_of(rounds[0], sizes), minlength=len(sizes))
    assert groups.tolist() == rows_per_group(sizes, target, unit, seed, "s").tolist()
    if unit != "row_group":
        assert draw.ranks()[rows].tolist() == list(range(sizes.sum()))
    if unit == "first":
        assert rows.tolist() == sorted(rows)


@given(subsets(), st.integers(0, 99), st.integers(0, 3))
def test_every_round_takes_all_that_is_left_of_its_row_groups_but_of_one(subset, seed, round):
    sizes, target = subset
    taken, _ = allocate(sizes, target, seed, "s", round)
    assert taken.sum() == target
    assert len(np.flatnonzero((taken > 0) & (taken < sizes))) <= 1


def test_what_is_kept_is_as_likely_beside_rejected_rows_as_elsewhere():
    """Half of 60 row groups have 6 of 10 rows rejected, so that all depends on which are drawn.

    `Draw` says that what deviates is of the order of a group's share, 1/60. Replacing from the rest
    of the group drawn in part would favour good rows beside bad ones by half.
    """
    sizes = np.full(60, 10)
    bad = np.arange(600) % 20 < 6
    mixed = (np.arange(600) % 20 < 10) & ~bad
    clean = np.arange(600) % 20 >= 10
    target = 5
    shares = np.zeros((SEEDS, 2))
    for seed in range(SEEDS):
        draw, kept = Draw(sizes, "row_group", seed, "s"), np.empty(0, np.int64)
        while len(kept) < target:
            drawn = draw.take(target - len(kept))
            kept = np.append(kept, drawn[~bad[drawn]])
        assert len(kept) == len(set(kept)) == target
        shares[seed] = mixed[kept].sum() / mixed.sum(), clean[kept].sum() / clean.sum()
    ahead = (shares[:, 0] - shares[:, 1]) / shares.mean()
    error = ahead.std() / SEEDS**0.5
    assert error < 0.05
    assert abs(ahead.mean()) < 1 / 60 + 3 * error


def test_a_round_that_one_row_group_can_give_comes_from_one_by_its_size():
    givers = [
        int(np.flatnonzero(allocate(UNEQUAL, 1, seed, "s", 2)[0])[0]) for seed in range(SEEDS)
    ]
    counts = np.bincount(givers, minlength=len(UNEQUAL))
    expected = UNEQUAL / UNEQUAL.sum() * SEEDS
    assert chi2.sf(((counts - expected) ** 2 / expected).sum(), len(UNEQUAL) - 1) > 1e-3


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
        seen[seed, Draw(sizes, unit, seed, "s").take(target)] = 1
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
        return Draw(UNEQUAL, "row_group", seed, name).take(10).tolist()

    assert drawn(0, "a") == drawn(0, "a")
    assert drawn(0, "a") != drawn(1, "a")
    assert drawn(0, "a") != drawn(0, "b")


def test_the_largest_subset_is_drawn_exactly():
    sizes = np.append(np.full(42_338, 100), 53)  # text_openorca: 4,233,853 rows
    taken, _ = allocate(sizes, 42_338, 0, "text_openorca")
    assert taken.sum() == 42_338
    assert 423 <= np.count_nonzero(taken) <= 425
