"""The variable-length kernel gets a row in its own layout, and computes what SDPA does in turn."""

import pytest
import torch

from interlace.decoder.layers import decoder_layers
from interlace.training import attention
from interlace.training.attention import PackedAttention
from tests.tiny_families import tiny_model


def plain_varlen(query, key, value, cu_seq_q, cu_seq_k, max_q, max_k, *, scale, window_size):
    """What torch 2.11's varlen_attn computes, written out: (T, H, D), equally many heads."""
    assert query.shape == key.shape == value.shape
    assert query.dtype == key.dtype == value.dtype == torch.bfloat16
    assert max_q == max_k == int(cu_seq_q.diff().max())
    assert cu_seq_q.dtype == torch.int32
    place = torch.arange(len(query))
    owner = torch.searchsorted(cu_seq_q.long(), place, right=True)
    left = len(query) if window_size[0] < 0 else window_size[0]
    back = place[:, None] - place
    seen = (owner[:, None] == owner) & (back >= 0) & (back <= left)
    scores = torch.einsum("qhd,khd->hqk", query.float(), key.float()) * scale
    chances = scores.masked_fill(~seen, -torch.inf).softmax(-1)
    return torch.einsum("hqk,khd->qhd", chances, value.float()).to(query.dtype)


def with_shared_heads(query, key, value, *args, enable_gqa=False, **kwargs):
    """The same with torch 2.14's signature."""
    assert enable_gqa == (query.shape[1] != key.shape[1])
    groups = query.shape[1] // key.shape[1]
    key, value = (states.repeat_interleave(groups, 1) for states in (key, value))
    return plain_varlen(query, key, value, *args, **kwargs)


@pytest.mark.parametrize("varlen", [plain_varlen, with_shared_heads])
@pytest.mark.parametrize("autocast", [False, True])
@pytest.mark.parametrize("window", [None, 4])
def test_the_kernel_gets_what_it_needs(varlen, autocast, window, monkeypatch):
    monkeypatch.setattr("torch.nn.attention.varlen.varlen_attn", varlen)
    attention._torch_kernel.cache_clear()
    kernel = attention._torch_kernel()
    attention._torch_kernel.cache_clear()
    starts = [0, 5, 6, 17]
    attend = PackedAttention(tiny_model("llama"))
    attend.set(starts)
    torch.manual_seed(0)
    given_dtype = torch.float32 if autocast else torch.bfloat16
    states = [torch.randn(1, heads, 17, 8).to(given_dtype) for heads in (4, 2, 2)]
    module = decoder_layers(tiny_model("llama"))[0].self_attn
    found = []
    for chosen in (kernel, None):
        monkeypatch.setattr(attention, "_kernel", lambda *_, chosen=chosen: chosen)
        with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
            output, _ = attention._attend(
                module, *states, None, scaling=0.3, sliding_window=window, position_ids=None
            )
        assert output.shape == (1, 17, 4, 8)
        found.append(output.float())
    torch.testing.assert_close(*found, atol=0.03, rtol=0.03)
    attend.restore()


@pytest.mark.gpu
@pytest.mark.parametrize("window", [None, 40])
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_the_kernel_on_a_gpu_agrees_with_sdpa(window, monkeypatch):
    starts = [0, 70, 71, 300, 512]
    attend = PackedAttention(tiny_model("llama"))
    attend.set(torch.tensor(starts, device="cuda"))
    module = decoder_layers(tiny_model("llama"))[0].self_attn
    found = []
    kernel = attention._kernel(torch.device("cuda"), 0.0)
    assert kernel is not None
    for chosen in (kernel, None):
        torch.manual_seed(0)
        states = [torch.randn(1, 512, heads, 64, device="cuda") for heads in (8, 4, 4)]
        states = [s.transpose(1, 2).bfloat16().requires_grad_() for s in states]
        module.num_key_value_groups = 2
        monkeypatch.setattr(attention, "_kernel", lambda *_, chosen=chosen: chosen)
        output, _ = attention._attend(module, *states, None, scaling=0.1, sliding_window=window)
        output.float().square().sum().backward()
        found.append([output, *(s.grad for s in states)])
    for ours, other in zip(*found, strict=True):
        torch.testing.assert_close(ours.float(), other.float(), atol=0.05, rtol=0.05)
    attend.restore()
