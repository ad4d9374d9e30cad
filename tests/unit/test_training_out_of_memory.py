from dataclasses import replace

import pytest
import torch

from interlace.errors import InputError
from interlace.training.memory import ALWAYS, MemoryEstimate, Part
from interlace.training.out_of_memory import (
    MicroBatchMemory,
    Now,
    OutOfMemory,
    is_out_of_memory,
    one_line_if_out_of_memory,
)
from interlace.training.recipe import RECIPES

PLAIN = replace(RECIPES["fast"], sharding="none", checkpointing="none", head="chunked")
UNDER = {**PLAIN.levers(), "size": 16}
NEED = MemoryEstimate((Part("all", 10**10, ALWAYS),))


def test_allocators_are_recognised():
    with pytest.raises(RuntimeError) as raised:
        torch.empty(2**55, dtype=torch.uint8)
    assert is_out_of_memory(raised.value)
    assert is_out_of_memory(torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB"))
    assert is_out_of_memory(MemoryError())
    assert not is_out_of_memory(RuntimeError("mat1 and mat2 shapes cannot be multiplied"))
    assert not is_out_of_memory(KeyError("CUDA out of memory"))


FAKE = "[enforce fail at alloc_cpu.cpp:124] DefaultCPUAllocator: can't allocate memory: 12 bytes"


def attempt(work, size, error, recipe=PLAIN, samples=4):
    memory, now = MicroBatchMemory(work, UNDER), Now()
    now.step, now.samples = "step 7", samples
    tried = memory.smaller(size)
    with one_line_if_out_of_memory("tune v", now, NEED, memory, recipe, size):
        if error is not None:
            raise error
    return tried


def test_each_attempt_halves_down_to_one_sample(tmp_path):
    work = tmp_path / ".out.trainer-0123"
    padded = replace(PLAIN, packing=False, head="full")
    lines = []
    for size in (12, 6, 3, 1, 1):
        assert MicroBatchMemory(work, UNDER).smaller(12) == size
        with pytest.raises(OutOfMemory) as raised:
            attempt(work, 12, RuntimeError(FAKE), padded, samples=size)
        lines.append(str(raised.value))
    assert all("\n" not in line for line in lines)
    assert isinstance(raised.value, InputError)
    assert "out of memory in tune v, step 7; estimated need 10.0 GB (all 10.0)" in lines[0]
    assert "next attempt takes 6 samples in place of 12" in lines[0]
    for change in (
        "micro_batch",
        "checkpointing: tuned",
        "head: chunked",
        "sharding: zero3_offload",
    ):
        assert f"finetune.{change}" in lines[0] or f"finetune.levers.{change}" in lines[0]
    assert "no smaller micro-batch is left" in lines[3] == lines[4]
    assert MicroBatchMemory(work, UNDER).divisor == 8
    assert [path.name for path in tmp_path.iterdir()] == [".out.trainer-0123.memory.json"]


def test_a_row_of_one_sample_is_not_halved(tmp_path):
    work = tmp_path / "work"
    with pytest.raises(OutOfMemory, match="takes 4096 tokens in place of 8192"):
        attempt(work, 8192, torch.OutOfMemoryError("CUDA out of memory"))
    with pytest.raises(OutOfMemory, match="one sample alone"):
        attempt(work, 8192, torch.OutOfMemoryError("CUDA out of memory"), samples=1)
    assert MicroBatchMemory(work, UNDER).smaller(8192) == 4096


def test_weights_that_do_not_fit_leave_the_batch_as_it_is(tmp_path):
    with pytest.raises(OutOfMemory, match=r"would not help; or set .*zero3_offload"):
        attempt(tmp_path / "work", 16, MemoryError(), samples=0)
    assert not list(tmp_path.iterdir())


def test_other_failures_and_other_settings_change_nothing(tmp_path):
    work = tmp_path / "work"
    for error in (RuntimeError("the loss is nan"), KeyboardInterrupt(), InputError("a: b")):
        with pytest.raises(type(error)):
            attempt(work, 16, error)
    assert attempt(work, 16, None) == 16
    assert not list(tmp_path.iterdir())
    with pytest.raises(OutOfMemory):
        attempt(work, 16, MemoryError())
    assert MicroBatchMemory(work, UNDER).divisor == 2
    assert MicroBatchMemory(tmp_path / "other", UNDER).divisor == 1


@pytest.mark.parametrize(
    "change",
    [{"packing": False}, {"checkpointing": "tuned"}, {"head": "liger"}, {"size": 8}],
    ids=lambda change: next(iter(change)),
)
def test_what_the_error_advised_is_not_applied_twice(tmp_path, change):
    MicroBatchMemory(tmp_path / "work", UNDER).note_out_of_memory(16)
    assert MicroBatchMemory(tmp_path / "work", UNDER | change).divisor == 1
    assert MicroBatchMemory(tmp_path / "work", UNDER).divisor == 2


def test_two_ranks_halve_once(tmp_path):
    ranks = [MicroBatchMemory(tmp_path / "work", UNDER) for _ in range(2)]
    assert [rank.note_out_of_memory(16) for rank in ranks] == [8, 8]
    assert MicroBatchMemory(tmp_path / "work", UNDER).divisor == 2
