"""Samples by row groups: exactly uniform whatever is rejected, and little read in vain."""

import itertools
import math

import numpy as np
import pytest
from hypothesis import assume, example, given, settings
from hypothesis import strategies as st

from interlace.sampling.arc import Arc, rows_in_order, seeded
from tests.unit.likelihood import SEEDS, as_likely, draw_arc


class Fixed:
    """A generator whose answers are given; `asked`: whether it was asked for a chance."""

    def __init__(self, row, order, chance):
        self.row, self.order, self.chance = row, order, chance
        self.asked = False

    def integers(self, high):
        return self.row

    def permutation(self, x):
        return x[list(self.order)]

    def random(self):
        assert not self.asked, "one chance an arc"
        self.asked = True
        return self.chance


def follow(arc, usable):
    """Return the rows that each group gives; but the first none is read that isn't needed."""
    seen, through = [], set()
    while groups := arc.wanted():
        assert len(seen) < 100
        for group in groups:
            assert group not in through, "it gave all its rows before"
            seen.append(group)
            if arc.found(group, min(usable[group], arc.most(group))):
                through.add(group)
    assert set(seen) == set(arc.gives)
    assert all(0 <= given <= usable[group] for group, given in arc.gives.items())
    assert all(arc.gives[group] or not usable[group] for group in seen[1:])
    return arc.gives


def all_cases(sizes, usable, sure, target):
    """Return the mean rows of each group, exactly, and the mean number of groups looked at.

    Over every usable start, every order of the groups and every outcome of the one chance.
    """
    sizes, total = np.array(sizes), np.zeros(len(sizes))
    begins, steps = np.cumsum(sizes) - sizes, math.lcm(*range(1, target + 1))
    middles = (np.arange(steps) + 0.5) / steps
    starts = [begins[group] + i for group, count in enumerate(usable) for i in range(count)]
    orders = list(itertools.permutations(range(len(sizes) - 1)))
    looked = cases = 0
    for start, order in itertools.product(starts, orders):
        for chance in middles:
            fixed = Fixed(start, order, chance)
            gives = follow(Arc(sizes, np.array(sure), target, fixed), usable)
            assert sum(gives.values()) == min(target, sum(usable))
            weight = 1 if fixed.asked else steps  # most arcs end without one
            total[list(gives)] += weight * np.array(list(gives.values()))
            looked += weight * len(gives)
            cases += weight
            if not fixed.asked:
                break
    return total / cases, looked / cases


@st.composite
def small(draw):
    sizes = draw(st.lists(st.integers(1, 5), min_size=1, max_size=4))
    usable = [draw(st.integers(0, size)) for size in sizes]
    sure = [draw(st.integers(0, count)) for count in usable]
    return sizes, usable, draw(st.sampled_from([sure, usable])), draw(st.integers(1, 5))


@settings(deadline=None, max_examples=60)
@given(small())
@example(([5, 5, 5, 5], [5, 5, 5, 5], [5, 5, 5, 5], 4))
@example(([5, 5, 5, 5], [5, 1, 0, 2], [5, 1, 0, 2], 5))
@example(([2, 5], [2, 5], [2, 5], 5))
@example(([1, 4, 1], [1, 4, 1], [0, 0, 0], 5))  # the right side comes round to where the left ends
def test_every_group_gives_exactly_its_share_whatever_is_rejected(case):
    sizes, usable, _, target = case
    assume(sum(usable) and target <= sum(sizes))
    share = min(1, target / sum(usable))
    assert np.allclose(all_cases(*case)[0], share * np.array(usable), atol=1e-12)


def test_where_it_is_surely_enough_the_rows_of_both_ends_come_from_one():
    equal = [4] * 4
    reads = {
        (target, sure): all_cases(equal, equal, [sure] * 4, target)[1]
        for target in (3, 4, 6)
        for sure in (0, 4)
    }
    assert reads == pytest.approx(
        {(3, 0): 1.5, (3, 4): 7 / 6, (4, 0): 1.75, (4, 4): 1.25, (6, 0): 2.25, (6, 4): 2}
    )


def test_what_damage_takes_from_a_group_said_to_be_sure_is_bounded_as_told():
    for size, count, target in itertools.product((3, 4), (3, 4), (1, 2, 3, 4)):
        for sure in range(2, size + 1):
            for left in range(1, sure):
                usable = [size] * (count - 1) + [left]
                if target <= sum(usable) - 1:
                    means, _ = all_cases([size] * count, usable, [sure] * count, target)
                    lost = target - sum(usable) * means[-1] / left
                    assert -1e-9 <= lost <= sure**2 / size + 1e-9


@pytest.mark.parametrize("sure", [1, 2, 3, 4])
def test_a_group_without_any_usable_row_takes_nothing_from_the_others(sure):
    for target in range(1, 7):
        means, _ = all_cases([4] * 3, [4, 4, 0], [sure] * 3, target)
        assert means == pytest.approx([target / 2, target / 2, 0])


def test_what_was_said_to_be_sure_is_not_relied_on_once_it_is_seen_to_be_wrong():
    sizes = np.full(4, 4)
    told, untold = (
        [
            follow(Arc(sizes, sure, 3, Fixed(start, order, 0.1)), [3, 3, 3, 3])
            for start in (0, 1, 2)
            for order in itertools.permutations(range(3))
        ]
        for sure in (sizes, 0 * sizes)
    )
    assert told == untold


CLUSTERED = {
    "half of the groups lose 6 of 10": np.tile([6, 0], 30),
    "half of the groups lose 9 of 10": np.tile([9, 0], 30),
    "one group in six loses all": np.tile([10, 0, 0, 0, 0, 0], 10),
}


@pytest.mark.parametrize("target", [5, 60])
@pytest.mark.parametrize("lost", CLUSTERED.values(), ids=CLUSTERED)
def test_what_is_kept_is_as_likely_beside_rejected_rows_as_elsewhere(lost, target):
    """Over 2,000 seeds: the rows that good and bad groups give, and all usable rows in tenths."""
    sizes = np.full(60, 10)
    usable = np.arange(600) % 10 >= np.repeat(lost, 10)
    good = np.repeat(lost == 0, 10)
    kept = np.zeros((SEEDS, 600))
    for seed in range(SEEDS):
        rows, _ = draw_arc(sizes, usable, target, seed)
        kept[seed, rows] = 1
    assert (kept.sum(axis=1) == target).all()
    assert not kept[:, ~usable].any()
    share = target / usable.sum()
    of_good = kept[:, good].sum(axis=1)
    error = of_good.std() / SEEDS**0.5
    assert abs(of_good.mean() - share * good.sum()) <= 3.3 * error
    parts = np.array_split(np.flatnonzero(usable), 10)
    sums = np.stack([kept[:, part].sum(axis=1) for part in parts], axis=1)
    as_likely(sums[:, :-1], np.array([share * len(part) for part in parts[:-1]]))


@given(
    st.lists(st.tuples(st.integers(1, 30), st.floats(0, 1)), min_size=1, max_size=15),
    st.integers(0, 200),
    st.integers(0, 99),
    st.floats(0, 1),
)
def test_any_subset_gives_its_count_or_all_that_it_has(groups, target, seed, trust):
    sizes = np.array([size for size, _ in groups])
    usable = np.array([round(size * share) for size, share in groups])
    sure = np.round(sizes * trust).astype(int)  # often wrong
    rows = np.arange(sizes.sum()) - np.repeat(np.cumsum(sizes) - sizes, sizes)
    rows, read = draw_arc(sizes, rows < np.repeat(usable, sizes), target, seed, sure)
    assert len(rows) == len(set(rows)) == min(target, usable.sum())
    assert len(read) <= len(sizes)


def test_a_group_that_gave_all_its_rows_is_not_come_round_to_for_more():
    sizes = np.array([3, 1, 5, 6])
    usable = np.arange(6) < np.array([[2], [1], [5], [0]])
    usable = np.concatenate([row[:size] for row, size in zip(usable, sizes, strict=True)])
    rows, _ = draw_arc(sizes, usable, 9, 272, sizes)
    assert len(rows) == len(set(rows)) == 8


def test_only_groups_that_are_needed_in_any_case_are_asked_for():
    sizes = np.full(50, 10)
    arc = seeded(sizes, sizes, 100, 0, "s")
    (middle,) = arc.wanted()
    arc.found(middle, 10)
    ahead = arc.wanted()
    assert 7 <= len(ahead) <= 8  # 90 rows on two sides, whose last groups may be one
    for group in ahead:
        assert arc.found(group, min(10, arc.most(group)))  # it gives all of them


def test_a_group_of_a_rejected_start_is_read_once_and_used_if_the_arc_comes_by():
    sizes, usable = np.full(4, 5), np.array([0, 5, 5, 5])

    class Starts(Fixed):
        rows = iter((2, 3, 7))

        def integers(self, high):
            return next(self.rows)

    arc = Arc(sizes, usable, 15, Starts(0, (0, 1, 2), 0.5))
    assert arc.wanted() == [0]
    assert not arc.found(0, 0)
    assert arc.wanted() == [1]  # the second start is of the same group
    gives = follow(arc, usable)
    assert gives == {0: 0, 1: 5, 2: 5, 3: 5}


def test_rows_of_a_group_are_looked_at_in_an_order_of_their_own():
    orders = [rows_in_order(20, group, 0, "s").tolist() for group in (0, 1)]
    assert sorted(orders[0]) == sorted(orders[1]) == list(range(20))
    assert orders[0] != orders[1]
    assert orders[0] == rows_in_order(20, 0, 0, "s").tolist()
