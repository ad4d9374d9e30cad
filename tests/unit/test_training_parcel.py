"""What workers send: the same step, in one piece of memory, however many tensors it has."""

import resource
from pathlib import Path

import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader

from interlace.training.batches import Failure, MicroBatch, Step
from interlace.training.parcel import Parcels, unwrap, wrap


def step(count):
    batches = [
        MicroBatch(
            inputs={
                "pixel_values": torch.randn(3, 5).to(torch.bfloat16),
                "input_ids": torch.tensor([[number, 2, 3]]),
                "odd": torch.tensor([True, False, number % 2 == 0]),
            },
            labels=torch.full((1, 3), -100),
            weights=torch.rand(1, 3),
            owners=torch.zeros(1, 3, dtype=torch.int64),
            ids=[f"s{number}"],
            starts=torch.tensor([0, 3], dtype=torch.int32),
        )
        for number in range(count)
    ]
    return Step(batches, None, [Failure("a", "a: why")], counts={"samples": count})


def test_a_step_comes_out_as_it_went_in():
    given = step(3)
    parcel = wrap(given)
    assert parcel.data.dtype == torch.uint8
    found = unwrap(parcel)
    assert (found.failures, found.counts, found.blank) == (given.failures, given.counts, None)
    for left, right in zip(given.micro_batches, found.micro_batches, strict=True):
        pairs = [(left.inputs[key], right.inputs[key]) for key in left.inputs]
        pairs += [
            (getattr(left, key), getattr(right, key))
            for key in vars(left)
            if key not in ("inputs", "ids")
        ]
        assert all(torch.equal(a, b) and a.dtype == b.dtype for a, b in pairs)
        assert left.ids == right.ids


@pytest.mark.parametrize(
    "value",
    [torch.empty(0), torch.empty(0, 7), torch.tensor(3.5), torch.arange(6).reshape(2, 3).T, "none"],
)
def test_any_shape_survives(value):
    found = unwrap(wrap([value, torch.tensor([1], dtype=torch.int8), value]))
    for one in (found[0], found[2]):
        if isinstance(value, str):
            assert one == value
        else:
            assert torch.equal(one, value)
            assert one.shape == value.shape
    assert found[1].tolist() == [1]


class Numbers(torch.utils.data.Dataset):
    def __len__(self):
        return 12

    def __getitem__(self, index):
        return index


def make(items):
    return [torch.full((4,), float(number)) for number in np.arange(200)]


def open_files():
    return len(list(Path("/proc/self/fd").iterdir()))


def test_hundreds_of_tensors_hold_one_file_open():
    before = open_files()
    limits = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (before + 80, limits[1]))
    try:
        loader = DataLoader(Numbers(), batch_size=1, collate_fn=Parcels(make), num_workers=2)
        steps = [unwrap(parcel) for parcel in loader]
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, limits)
    assert len(steps) == 12
    assert all(float(one[199][0]) == 199 for one in steps)
