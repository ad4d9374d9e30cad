"""Which samples an optimizer step takes, and on which rank: from the seed alone."""

import math
from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
from torch.utils.data import Sampler

from interlace.data.seeds import derive_seed


class Slot(NamedTuple):
    """A sample's place: its index, its group within the step and how many groups the step has."""

    index: int
    group: int
    groups: int


class StepSampler(Sampler[list[Slot]]):
    """Yields the slots of one rank, step by step; a batch sampler for a DataLoader.

    A step takes `group_size * accumulation * world_size` samples of a permutation of the epoch (the
    last step of an epoch what is left) in groups of `group_size`, whose mean losses it averages.
    Group g goes to rank g mod `world_size`; no sample is repeated to fill up, so that a rank may
    get nothing in the last step. The order depends on the seed and the epoch only: neither
    on the ranks nor on how the samples are laid out in memory.
    """

    def __init__(
        self,
        num_samples: int,
        group_size: int,
        accumulation: int,
        epochs: float,
        seed: int,
        rank: int = 0,
        world_size: int = 1,
    ) -> None:
        """`epochs` may be a fraction: that share of an epoch's steps, rounded up.

        `num_drawn`: how many different samples all ranks get together.
        """
        self._num_samples, self._group_size, self._seed = num_samples, group_size, seed
        self._rank, self._world_size = rank, world_size
        self._step_size = group_size * accumulation * world_size
        self.steps_per_epoch = math.ceil(num_samples / self._step_size)
        # The product of floats may lie a hair above the whole number that is meant.
        self._num_steps = max(1, math.ceil(round(epochs * self.steps_per_epoch, 6)))
        self.num_drawn = min(num_samples, self._num_steps * self._step_size)

    def __len__(self) -> int:
        """Return the number of optimizer steps."""
        return self._num_steps

    def __iter__(self) -> Iterator[list[Slot]]:
        order = np.empty(0, np.int64)
        for step in range(self._num_steps):
            epoch, position = divmod(step, self.steps_per_epoch)
            if position == 0:
                rng = np.random.default_rng(derive_seed(self._seed, "order", str(epoch)))
                order = rng.permutation(self._num_samples)
            taken = order[position * self._step_size : (position + 1) * self._step_size].tolist()
            groups = math.ceil(len(taken) / self._group_size)
            yield [
                Slot(index, group, groups)
                for group in range(self._rank, groups, self._world_size)
                for index in taken[group * self._group_size : (group + 1) * self._group_size]
            ]
