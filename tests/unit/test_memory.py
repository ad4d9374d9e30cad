"""What a job may still take of main memory: what is free, within what it asked for."""

import psutil
import pytest
import torch

from interlace.memory import free_bytes


def test_main_memory_is_bounded_by_what_the_job_asked_for():
    used = psutil.Process().memory_info().rss
    available = psutil.virtual_memory().available
    assert 0 < free_bytes("cpu") <= psutil.virtual_memory().total
    assert free_bytes("cpu", 1e12) <= 1.2 * available
    limit_mb = used / 1e6 + 50
    assert free_bytes(torch.device("cpu"), limit_mb) == pytest.approx(50e6, abs=30e6)
    assert free_bytes("cpu", 1) == 0


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_memory_that_torch_holds_without_using_it_is_free():
    before = free_bytes("cuda")
    held = torch.empty(2**26, dtype=torch.uint8, device="cuda")
    assert free_bytes("cuda") <= before - held.numel()
    del held
    assert free_bytes("cuda") == pytest.approx(before, abs=2**25)
