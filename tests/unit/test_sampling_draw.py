"""The draw: exact counts, every row as likely as any other, and no row twice."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from interlace.sampling.draw import Draw, expected, groups_of, sample_size
from tests.unit.likelihood import SEEDS, UNEQUAL, as_likely, draw_arc

UNITS = ("row", "row_group", "first")


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
    st.sampled_from(["row", "first"]),
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
    assert groups.tolist() == expected(sizes, sizes, target, unit, seed, "s")[0].tolist()
    assert draw.ranks()[rows].tolist() == list(range(sizes.sum()))
    if unit == "first":
        assert rows.tolist() == sorted(rows)


@given(subsets(), st.integers(0, 99))
def test_what_is_expected_is_what_is_drawn_where_no_row_is_rejected(subset, seed):
    sizes, target = subset
    for unit in UNITS:
        taken, touched = expected(sizes, sizes, target, unit, seed, "s")
        assert taken.sum() == target
        assert (taken <= sizes).all()
        assert not (taken > 0)[~touched].any()
    rows, read = draw_arc(sizes, np.ones(sizes.sum(), bool), target, seed)
    taken, touched = expected(sizes, sizes, target, "row_group", seed, "s")
    assert np.bincount(groups_of(rows, sizes), minlength=len(sizes)).tolist() == taken.tolist()
    assert sorted(read) == np.flatnonzero(touched).tolist()


@pytest.mark.parametrize("target", [1, 9, 20, 35])
@pytest.mark.parametrize(
    "sizes", [np.full(6, 6), UNEQUAL], ids=["equal row groups", "unequal row groups"]
)
@pytest.mark.parametrize("unit", ["row", "row_group"])
def test_every_row_is_as_likely_as_any_other(unit, sizes, target):
    """Chi-square of the rows' inclusion frequencies over 2,000 seeds against the fraction.

    Rows of one row group are drawn together, so the frequencies are not independent; see
    `as_likely`. On the first N - 1 rows, since the sum of all is fixed.
    """
    num_rows = int(sizes.sum())
    seen = np.zeros((SEEDS, num_rows))
    for seed in range(SEEDS):
        if unit == "row":
            rows = Draw(sizes, unit, seed, "s").take(target)
        else:
            rows, _ = draw_arc(sizes, np.ones(num_rows, bool), target, seed)
        seen[seed, rows] = 1
    assert (seen.sum(axis=1) == target).all()
    as_likely(seen[:, :-1], np.full(num_rows - 1, target / num_rows))


@pytest.mark.parametrize("target", [9, 20])
def test_every_row_group_gives_its_share_on_average(target):
    shares = np.array([expected(UNEQUAL, UNEQUAL, target, "row_group", seed, "s")[0] for seed in
                       range(SEEDS)])  # fmt: skip
    as_likely(shares[:, :-1].astype(float), UNEQUAL[:-1] * target / UNEQUAL.sum())


def test_the_likelihood_test_notices_a_bias():
    rng = np.random.default_rng(0)
    draws = (rng.random((SEEDS, 20)) < np.where(np.arange(20) == 3, 0.32, 0.25)).astype(float)
    with pytest.raises(AssertionError):
        as_likely(draws, np.full(20, 0.25))


def test_seed_and_name_decide_and_nothing_else():
    def drawn(seed, name):
        return expected(UNEQUAL, UNEQUAL, 10, "row_group", seed, name)[0].tolist()

    assert drawn(0, "a") == drawn(0, "a")
    assert len({tuple(drawn(seed, "a")) for seed in range(5)}) > 2
    assert len({tuple(drawn(0, name)) for name in "abcde"}) > 2


def test_the_largest_subset_is_drawn_exactly():
    sizes = np.append(np.full(42_338, 100), 53)  # text_openorca: 4,233,853 rows
    taken, touched = expected(sizes, sizes, 42_338, "row_group", 0, "text_openorca")
    assert taken.sum() == 42_338
    assert 424 <= touched.sum() <= 425
