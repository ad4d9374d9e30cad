"""Which head is chosen, how large its chunks are, and Liger's kernel beside them."""

import sys
import types

import pytest
import torch
import torch.nn.functional as F

from interlace.data.collate import IGNORED
from interlace.errors import InputError
from interlace.training import head as module
from interlace.training.head import CrossEntropy, Supervised, choose_head, chunk_rows
from tests.unit.head_cases import OnlyHead, by_hand, case, gradients, supervised_head


def test_the_kind_is_chosen_by_device_and_what_is_installed(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(module, "find_spec", lambda name: None)
    assert choose_head("auto") == "chunked"
    with pytest.raises(InputError, match="liger-kernel"):
        choose_head("liger")
    monkeypatch.setattr(module, "find_spec", lambda name: name == "liger_kernel")
    assert choose_head("auto") == choose_head("liger") == "liger"
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert choose_head("auto") == "chunked"
    with pytest.raises(InputError, match="needs a GPU"):
        choose_head("liger")
    with pytest.raises(InputError, match="'fused' is none of"):
        choose_head("fused")


def test_a_chunk_is_bounded_in_memory_and_never_empty():
    assert chunk_rows(torch.empty(151_936, 1, device="meta")) == 384
    assert chunk_rows(torch.empty(2**20, 1, device="meta")) == 64
    assert chunk_rows(torch.empty(2**40, 1, device="meta")) == 1
    partitioned = torch.empty(0)
    partitioned.ds_shape = (151_936, 4096)
    assert chunk_rows(partitioned) == 384


@pytest.fixture
def pretended_liger(monkeypatch):
    """Liger's function by its public signature, in plain torch; counts its calls."""
    calls = []

    def fused(input, weight, target, reduction="mean", **others):
        assert not others
        assert input.dtype == weight.dtype
        calls.append(len(target))
        return F.cross_entropy((input @ weight.T).float(), target, reduction=reduction)

    functional = types.ModuleType("liger_kernel.transformers.functional")
    functional.liger_fused_linear_cross_entropy = fused
    monkeypatch.setitem(sys.modules, "liger_kernel", types.ModuleType("liger_kernel"))
    monkeypatch.setitem(sys.modules, "liger_kernel.transformers", types.ModuleType("transformers"))
    monkeypatch.setitem(sys.modules, functional.__name__, functional)
    monkeypatch.setattr(module, "choose_head", lambda kind: kind)
    return calls


def test_liger_is_called_once_for_each_weight_and_not_for_what_it_cannot_do(pretended_liger):
    hidden, head, labels, _ = case(3, 8, dtype=torch.float32)
    hidden.requires_grad_()
    head.requires_grad_(False)
    weights = torch.tensor([0.5, 0.25, 0.5])[:, None].expand(labels.shape)
    weights = weights.masked_fill(labels == IGNORED, 0)
    expected = by_hand(hidden, head.weight, labels, weights)
    model = OnlyHead(head)
    with supervised_head(model, "liger", 4) as supervised:
        supervised.expect(labels, weights)
        loss = model(hidden)
        assert len(pretended_liger) == 2
        assert sum(pretended_liger) == int((labels[:, 1:] != IGNORED).sum())
        assert supervised.losses is None
        assert loss.item() == pytest.approx(expected.item(), rel=1e-5)
        got, plain = gradients(loss, hidden)[0], gradients(expected, hidden)[0]
        assert torch.allclose(got, plain, atol=1e-6)

        supervised.expect(torch.full_like(labels, IGNORED), weights)
        loss = model(hidden)
        loss.backward()
        assert loss.item() == 0.0
        assert torch.equal(hidden.grad, torch.zeros_like(hidden))

        with torch.no_grad():
            hidden[1] = torch.nan
        supervised.expect(labels, weights)
        model(hidden)
        counts = (labels[:, 1:] != IGNORED).sum(1).tolist()
        bad = [False] * counts[0] + [True] * counts[1] + [False] * counts[2]
        assert (~torch.isfinite(supervised.losses)).tolist() == bad

        pretended_liger.clear()
        supervised.expect(labels, weights, CrossEntropy(Supervised.of(labels, weights)))
        model(hidden)
        head.requires_grad_(True)
        supervised.expect(labels, weights)
        model(hidden)
        assert not pretended_liger


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_chunks_and_liger_on_a_gpu_give_the_loss_of_all_logits(dtype):
    kinds = ["chunked"]
    if choose_head("auto") == "liger":
        kinds.append("liger")
    hidden, head, labels, weights = case(4, 64, 128, 1000, dtype=torch.float32)
    hidden, labels = hidden.cuda().requires_grad_(), labels.cuda()
    head.cuda().requires_grad_(False)
    weights = (weights * 4).round().cuda() / 4
    expected = by_hand(hidden, head.weight, labels, weights)
    (plain,) = gradients(expected, hidden)
    model = OnlyHead(head)
    tolerance = 1e-4 if dtype == torch.float32 else 2e-2
    for kind in kinds:
        with (
            torch.autocast("cuda", dtype, enabled=dtype != torch.float32),
            supervised_head(model, kind, 50) as supervised,
        ):
            supervised.expect(labels, weights)
            loss = model(hidden)
        assert loss.item() == pytest.approx(expected.item(), rel=tolerance)
        (got,) = gradients(loss, hidden)
        assert (got - plain).norm() < tolerance * plain.norm()
