"""Which samples a step takes: each once an epoch, in one order for any number of ranks."""

import itertools
import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from interlace.training.order import StepSampler

sizes = st.tuples(
    st.integers(1, 60), st.integers(1, 5), st.integers(1, 3), st.integers(1, 4), st.integers(0, 9)
)


def all_ranks(num_samples, group_size, accumulation, epochs, seed, world_size):
    """Return per step the slots of all ranks, group by group."""
    ranks = [
        list(StepSampler(num_samples, group_size, accumulation, epochs, seed, rank, world_size))
        for rank in range(world_size)
    ]
    return [
        sorted(itertools.chain(*parts), key=lambda s: s.group) for parts in zip(*ranks, strict=True)
    ]


@given(sizes)
def test_every_sample_comes_once_an_epoch_whatever_the_ranks(given_sizes):
    num_samples, group_size, accumulation, world_size, seed = given_sizes
    steps = all_ranks(num_samples, group_size, accumulation, 2, seed, world_size)
    per_epoch = math.ceil(num_samples / (group_size * accumulation * world_size))
    assert len(steps) == 2 * per_epoch
    for epoch in range(2):
        slots = itertools.chain(*steps[epoch * per_epoch : (epoch + 1) * per_epoch])
        assert sorted(slot.index for slot in slots) == list(range(num_samples))
    for slots in steps:
        counts = [sum(s.group == g for s in slots) for g in range(slots[0].groups)]
        assert all(count == group_size for count in counts[:-1])
        assert 0 < counts[-1] <= group_size
        assert {slot.groups for slot in slots} == {len(counts)}


@given(sizes)
def test_ranks_take_the_same_steps_as_one_process_with_as_much_accumulation(given_sizes):
    num_samples, group_size, accumulation, world_size, seed = given_sizes
    several = all_ranks(num_samples, group_size, accumulation, 1, seed, world_size)
    one = all_ranks(num_samples, group_size, accumulation * world_size, 1, seed, 1)
    assert several == one


def test_the_seed_and_the_epoch_decide_the_order():
    def indices(seed, epochs=1):
        return [s.index for step in StepSampler(50, 4, 1, epochs, seed) for s in step]

    assert indices(0) == indices(0) != indices(1)
    assert indices(0, 2)[:50] == indices(0)
    assert indices(0, 2)[50:] != indices(0)


@pytest.mark.parametrize(("epochs", "steps"), [(0.5, 4), (1, 7), (1.5, 11), (1e-9, 1)])
def test_a_fraction_of_an_epoch_is_that_share_of_its_steps(epochs, steps):
    sampler = StepSampler(50, 4, 2, epochs, seed=0)
    assert len(sampler) == len(list(sampler)) == steps
    assert sampler.num_drawn == len({slot.index for step in sampler for slot in step})


def test_a_product_of_floats_is_not_rounded_up_from_the_number_that_is_meant():
    for hundredths in range(1, 301):
        assert len(StepSampler(100, 1, 1, hundredths / 100, seed=0)) == hundredths


@given(sizes, st.floats(0.01, 2))
def test_the_samples_drawn_are_counted_over_all_ranks(given_sizes, epochs):
    num_samples, group_size, accumulation, world_size, seed = given_sizes
    steps = all_ranks(num_samples, group_size, accumulation, epochs, seed, world_size)
    sampler = StepSampler(num_samples, group_size, accumulation, epochs, seed, 0, world_size)
    assert sampler.num_drawn == len({slot.index for slots in steps for slot in slots})
