"""Which row groups to read for a sample that is uniform over rows not yet known to be usable.

Row groups stand on a circle in random order, rows within a group in random order. A row that is
drawn uniformly, and again while it is a rejected one, is the middle of the sample: from there the
circle is followed both ways until there are enough usable rows (circular systematic sampling with
a random start: Lahiri 1951; Madow, Annals of Mathematical Statistics 20, 1949, 333-354). Of the T
usable rows each is in exactly n of the T arcs that are equally likely: the sample is uniform
whatever is rejected, and however rejections gather in some row groups.

An arc ends within a row group on either side, of which a part is wasted. Where one of both can
surely give what both are to give, v and w rows, the first gives v + w with probability
v / (v + w), else the second does, which leaves their expectations as they were, and one of them
need not be read (a step of the pivotal method: Deville and Tille, Biometrika 85, 1998, 89-101).
As rows within a group are in random order, equal expectations of groups are equal chances of rows.
"""

from typing import Protocol

import numpy as np

from interlace.data.seeds import derive_seed


class _Generator(Protocol):
    """What is asked of `numpy.random.Generator`."""

    def integers(self, high: int) -> int: ...
    def permutation(self, x: np.ndarray) -> np.ndarray: ...
    def random(self) -> float: ...


class Arc:
    """Decides step by step which row groups are needed, by how many usable rows others have shown.

    The caller looks at the groups of `wanted()` in turn, up to `most(group)` usable rows of each,
    and tells `found(group, usable)`, until none is wanted. `gives` then says how many rows each
    of the groups looked at gives; the sum is `target` unless fewer rows are usable.

    The chances are exactly equal as long as each group has the usable rows that `sure` says (or,
    among groups of a size, none). A group of b rows that has fewer than its c sure ones, since some
    are damaged, comes too seldom at the end of an arc: its rows are in up to c^2 / b fewer of the T
    arcs than n (found by going through all cases of a few small groups). So `sure` is not relied on
    once a group that a start was drawn in shows that it is wrong.
    """

    def __init__(
        self, sizes: np.ndarray, sure: np.ndarray, target: int, generator: _Generator
    ) -> None:
        """`sizes`, `sure`: rows of each group, and how many of them at least are usable."""
        self._sizes = sizes.astype(np.int64)
        self._sure = np.minimum(sure, sizes).tolist()
        self._bounds = np.cumsum(self._sizes)
        self._num_rows = int(self._sizes.sum())
        self._target = min(target, self._num_rows)
        self._generator = generator
        self.gives: dict[int, int] = {}
        self._seen: dict[int, int] = {}  # usable rows of the groups in which a start was drawn
        self._start: tuple[int, int] | None = None  # group, and place among its rows
        self._middle: int | None = None  # the group of the start that was accepted
        self._needs = [0, 0]  # rows still needed on the left and on the right
        # The last group on the left and on the right; None for one that has given all its rows.
        self._ends: list[int | None] = [None, None]
        self._others: list[int] = []  # the circle from right to left of the middle
        self._low = self._high = 0  # those between are not looked at
        self._settled = self._over = False
        if self._target:
            self._draw_start()

    def wanted(self) -> list[int]:
        """Return groups that are needed whatever is in them, in the order to look at them."""
        if self._middle is None:
            return [] if self._start is None else [self._start[0]]
        if self._over:
            return []
        groups = self._certain()
        if not groups and any(self._needs) and not self._settled:
            self._settled = True
            self._settle_ends()
            groups = self._certain()
        return groups

    def most(self, group: int) -> int:
        """Return how many usable rows of a wanted group can be of use."""
        if self._middle is None:
            return int(self._sizes[group])
        if self._low == self._high:
            return self.gives[group] + sum(self._needs)
        return sum(self._needs) if self._high - self._low == 1 else self._needs[self._side(group)]

    def found(self, group: int, usable: int) -> bool:
        """Take note of the usable rows of a wanted group; return whether it surely gives them all."""
        if self._middle is None:
            self._seen[group] = usable
            self.gives[group] = 0
            self._try_start()
            return False
        if self._low == self._high:  # what the other side has left of its last group
            self._over = True
            self.gives[group] = usable
            return False
        meet = self._high - self._low == 1 and all(self._needs)
        side = self._side(group)
        if side:
            self._low += 1
        else:
            self._high -= 1
        self.gives[group] = usable
        if meet:  # both sides end in it
            self._over = True
            return usable < sum(self._needs)
        self._needs[side] -= usable
        self._ends[side] = group if self._needs[side] <= 0 else None
        return self._needs[side] > 0

    # -- the start ------------------------------------------------------------------------------

    def _draw_start(self) -> None:
        row = int(self._generator.integers(self._num_rows))
        group = int(np.searchsorted(self._bounds, row, side="right"))
        self._start = group, row - int(self._bounds[group] - self._sizes[group])

    def _try_start(self) -> None:
        """Begin at the row that was drawn if it is a usable one, else draw others.

        Usable rows count as the first of their group, which are as many.
        """
        while any(self._seen.values()) or sum(self._sizes[list(self._seen)]) < self._num_rows:
            assert self._start is not None
            group, place = self._start
            if group not in self._seen:
                return
            if place < self._seen[group]:
                self._begin(group, place)
                return
            self._draw_start()
        self._start = None  # no row of the subset is usable

    def _begin(self, group: int, place: int) -> None:
        """Follow the circle from the usable row number `place` of a group, half the rows each way."""
        before = (self._target - 1) // 2
        after = self._target - 1 - before
        follow = self._seen[group] - 1 - place
        self._middle, self._start = group, None
        self._ends = [group, group]
        self.gives[group] = min(place, before) + 1 + min(follow, after)
        self._needs = [max(0, before - place), max(0, after - follow)]
        others = np.delete(np.arange(len(self._sizes)), group)
        self._others = self._generator.permutation(others).tolist()
        self._high = len(self._others)

    # -- both ways ------------------------------------------------------------------------------

    def _side(self, group: int) -> int:
        """Return 1 for the next group on the right if that side has a need, else 0."""
        return int(self._needs[1] > 0 and self._others[self._low] == group)

    def _certain(self) -> list[int]:
        """Return the groups that both sides need even if all rows of those before are usable."""
        if self._low == self._high:
            return self._around()
        free = self._others[self._low : self._high]
        right, left = self._ahead(1, free), self._ahead(0, free[::-1])
        return right + left[: len(free) - len(right)]

    def _ahead(self, side: int, groups: list[int]) -> list[int]:
        need, ahead = self._needs[side], 0
        for group in groups:
            # Before the ends are settled, a group that may be the last is left for that.
            if need <= 0 or (need <= self._sure[group] and not self._settled):
                break
            need -= int(self._sizes[group])
            ahead += 1
        return groups[:ahead]

    def _around(self) -> list[int]:
        """Return the group in which one side ended, if the other comes round to it with a need."""
        needy = [side for side in (0, 1) if self._needs[side]]
        if len(needy) != 1 or self._over:
            return []
        group = self._ends[1 - needy[0]]
        if group is None:
            self._over = True
            return []
        if group != self._middle:
            return [group]
        self._over = True
        need = self._needs[needy[0]]
        self.gives[group] = min(self._seen[group], self.gives[group] + need)
        return []

    def _settle_ends(self) -> None:
        """Let one of the two last groups give what both are to give, if either surely can."""
        wrong = any(usable < self._sure[group] for group, usable in self._seen.items())
        if wrong or self._high - self._low < 1 + all(self._needs):
            return
        nearest = self._others[self._high - 1], self._others[self._low]
        if all(self._needs):
            need = sum(self._needs)
            if need <= min(self._sure[group] for group in nearest):
                on_left = self._generator.random() * need < self._needs[0]
                self._needs = [need, 0] if on_left else [0, need]
            return
        side = int(self._needs[1] > 0)
        other = self._ends[1 - side]
        if other != self._middle:
            return
        need = self.gives[other] + self._needs[side]
        if need <= min(self._seen[other], self._sure[nearest[side]]):
            stays = self._generator.random() * need < self.gives[other]
            self.gives[other] = need if stays else 0
            self._needs[side] = 0 if stays else need


def seeded(sizes: np.ndarray, sure: np.ndarray, target: int, seed: int, subset: str) -> Arc:
    """Return the arc of a subset; nothing but these decides it."""
    return Arc(sizes, sure, target, np.random.default_rng(derive_seed(seed, subset, "groups")))


def rows_in_order(size: int, group: int, seed: int, subset: str) -> np.ndarray:
    """Return the rows of a group in the order in which they are looked at."""
    generator = np.random.default_rng(derive_seed(seed, subset, "rows", str(group)))
    return generator.permutation(size)
