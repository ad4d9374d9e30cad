import weakref

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.utils._python_dispatch import TorchDispatchMode

from interlace.data.collate import IGNORED
from interlace.errors import InputError
from interlace.training.head import (
    CrossEntropy,
    Supervised,
    SupervisedHead,
    full_loss,
    head_refusal,
)
from tests.tiny_families import FAMILIES, tiny_batch, tiny_model
from tests.unit.head_cases import OnlyHead, by_hand, case, gradients, supervised_head

KINDS = ("supervised", "chunked")


@pytest.mark.parametrize("kind", KINDS)
@settings(max_examples=60, deadline=None)
@given(
    rows=st.integers(1, 3), tokens=st.integers(1, 9), width=st.integers(1, 6),
    vocabulary=st.integers(1, 13), seed=st.integers(0, 99), share=st.sampled_from([0.0, 0.5, 1.0]),
    chunk=st.integers(1, 9), trained=st.booleans(), zero=st.booleans(),
)  # fmt: skip
def test_loss_and_gradients_are_those_of_plain_autograd(
    kind, rows, tokens, width, vocabulary, seed, share, chunk, trained, zero
):
    hidden, head, labels, weights = case(rows, tokens, width, vocabulary, seed, share)
    if zero:
        weights.zero_()
    hidden.requires_grad_()
    head.requires_grad_(trained)
    wanted = [hidden, head.weight] if trained else [hidden]
    expected = by_hand(hidden, head.weight, labels, weights)
    model = OnlyHead(head)
    with supervised_head(model, kind, chunk) as supervised:
        supervised.expect(labels, weights)
        loss = model(hidden)
    assert loss.shape == ()
    assert abs((loss - expected).item()) < 1e-10
    # Scaled, as a loss that is one of several terms is.
    for got, plain in zip(
        gradients(3 * loss, *wanted), gradients(3 * expected, *wanted), strict=True
    ):
        assert got.dtype == plain.dtype
        assert torch.allclose(got, plain, rtol=0, atol=1e-10)
    taught = int((labels[:, 1:] != IGNORED).sum())
    assert supervised.losses.shape == (taught,)
    assert not supervised.losses.requires_grad
    whole, losses = full_loss(hidden @ head.weight.T, labels, weights)
    assert abs((whole - expected).item()) < 1e-10
    assert torch.allclose(losses, supervised.losses, atol=1e-10)


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("kind", KINDS)
def test_every_family_gives_its_own_loss_and_gradients(family, kind):
    tied = family in ("qwen3_vl", "llama")  # float32: mixtures of experts have no other kernel
    model = tiny_model(family, layers=3, tie_word_embeddings=tied)
    if tied:
        model.get_output_embeddings().weight = model.get_input_embeddings().weight
    batch = tiny_batch(family)
    labels = batch["input_ids"].clone()
    labels[:, ::3] = IGNORED
    weights = (labels != IGNORED) / (labels[:, 1:] != IGNORED).sum()
    own = model(**batch, labels=labels).loss
    own.backward()
    expected = {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}
    model.zero_grad()
    assert head_refusal(model) is None
    with supervised_head(model, kind, rows=3) as head:
        head.expect(labels, weights)
        loss = model(**batch, use_cache=False).logits
    assert loss.item() == pytest.approx(own.item(), rel=1e-6)
    loss.backward()
    assert {n for n, p in model.named_parameters() if p.grad is not None} == set(expected)
    for name, parameter in model.named_parameters():
        if name in expected:
            assert torch.allclose(parameter.grad, expected[name], rtol=1e-4, atol=1e-6), name
    assert model(**batch).logits.shape[1] == labels.shape[1]  # its own forward again


def test_a_trained_head_that_is_tied_gets_the_gradients_of_both_its_uses():
    model = tiny_model("llama", layers=2).double()
    model.get_output_embeddings().weight = model.get_input_embeddings().weight
    batch = tiny_batch("llama")
    labels = batch["input_ids"]
    weights = torch.full(labels.shape, 0.1)
    found = []
    for kind in KINDS:
        with supervised_head(model, kind, 4) as head:
            head.expect(labels, weights)
            (gradient,) = gradients(
                model(**batch, use_cache=False).logits, model.get_input_embeddings().weight
            )
        found.append(gradient)
    loss, _ = full_loss(model(**batch).logits, labels, weights)
    found.append(gradients(loss, model.get_input_embeddings().weight)[0])
    assert torch.allclose(found[0], found[2], rtol=0, atol=1e-10)
    assert torch.allclose(found[1], found[2], rtol=0, atol=1e-10)


@pytest.mark.parametrize("kind", KINDS)
def test_without_a_label_the_loss_is_zero_with_a_graph_even_where_states_are_not_finite(kind):
    hidden, head, labels, weights = case(share=0.0)
    hidden[0, 0] = torch.inf
    hidden.requires_grad_()
    model = OnlyHead(head)
    with supervised_head(model, kind) as supervised:
        supervised.expect(labels, weights)
        loss = model(hidden)
    assert loss.item() == 0.0
    loss.backward()
    assert torch.equal(hidden.grad, torch.zeros_like(hidden))
    assert torch.equal(head.weight.grad, torch.zeros_like(head.weight))


@pytest.mark.parametrize("kind", KINDS)
def test_without_gradients_there_is_a_loss_and_no_graph(kind):
    hidden, head, labels, weights = case()
    model = OnlyHead(head)
    with torch.no_grad(), supervised_head(model, kind, 2) as supervised:
        supervised.expect(labels, weights)
        loss = model(hidden)
    assert not loss.requires_grad
    assert loss.item() == pytest.approx(by_hand(hidden, head.weight, labels, weights).item())


@pytest.mark.parametrize("kind", KINDS)
def test_the_losses_name_the_row_whose_states_are_not_finite(kind):
    hidden, head, labels, weights = case(rows=3, share=1.0)
    hidden[1, 2] = torch.nan
    model = OnlyHead(head)
    with supervised_head(model, kind, 4) as supervised:
        supervised.expect(labels, weights)
        model(hidden)
    assert (~torch.isfinite(supervised.losses)).nonzero().tolist() == [[6 + 2]]  # row-major


@pytest.mark.parametrize("trained", [False, True])
@pytest.mark.parametrize("frozen_type", [torch.float32, torch.bfloat16])
def test_autocast_computes_in_bfloat16_as_a_linear_map_does(trained, frozen_type):
    hidden, head, labels, weights = case(4, 16, 64, 96, dtype=torch.float32)
    exact_loss = by_hand(hidden, head.weight, labels, weights)
    hidden.requires_grad_()
    head.to(torch.float32 if trained else frozen_type).requires_grad_(trained)
    wanted = [hidden, head.weight] if trained else [hidden]
    seen = []

    class Spy(CrossEntropy):
        def __call__(self, logits, part):
            seen.append(logits.dtype)
            return super().__call__(logits, part)

    results = []
    for kind in ("plain", *KINDS):
        with torch.autocast("cpu", torch.bfloat16):
            if kind == "plain":
                loss, _ = full_loss(head(hidden), labels, weights)
            else:
                model = OnlyHead(head)
                with supervised_head(model, kind, 5) as supervised:
                    supervised.expect(labels, weights, Spy(Supervised.of(labels, weights)))
                    loss = model(hidden)
        assert loss.dtype == torch.float32
        results.append((loss, gradients(loss, *wanted)))
    assert set(seen) == {torch.bfloat16}
    plain, plain_gradients = results[0]
    assert plain.item() == pytest.approx(exact_loss.item(), rel=0.02)
    for loss, found in results[1:]:
        assert loss.item() == pytest.approx(plain.item(), rel=1e-5)  # the same rounded logits
        for got, expected in zip(found, plain_gradients, strict=True):
            assert got.dtype == expected.dtype == torch.float32
            assert (got - expected).norm() < 5e-3 * expected.norm()


def test_a_model_in_bfloat16_gets_gradients_in_bfloat16_and_a_loss_in_float32():
    hidden, head, labels, weights = case(2, 9, 16, 24, dtype=torch.bfloat16)
    hidden.requires_grad_()
    plain, _ = full_loss(head(hidden), labels, weights)
    model = OnlyHead(head)
    with supervised_head(model, "chunked", 3) as supervised:
        supervised.expect(labels, weights)
        loss = model(hidden)
    assert loss.dtype == supervised.losses.dtype == torch.float32
    assert loss.item() == pytest.approx(plain.item(), rel=1e-5)
    wanted = (hidden, head.weight)
    for got, expected in zip(gradients(loss, *wanted), gradients(plain, *wanted), strict=True):
        assert got.dtype == torch.bfloat16
        assert (got - expected).norm() < 0.02 * expected.norm()


class Sizes(TorchDispatchMode):
    """Remembers how large the tensors of a computation are, and which live on."""

    def __init__(self):
        super().__init__()
        self.largest, self._made = 0, []

    def __torch_dispatch__(self, func, kinds, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        for tensor in result if isinstance(result, tuple | list) else [result]:
            if isinstance(tensor, torch.Tensor):
                self.largest = max(self.largest, tensor.numel())
                self._made.append(weakref.ref(tensor))
        return result

    def alive(self, numel):
        tensors = [reference() for reference in self._made]
        return sum(tensor is not None and tensor.numel() >= numel for tensor in tensors)


@pytest.mark.parametrize("kind", KINDS)
def test_in_chunks_no_logits_of_all_tokens_are_made_and_none_are_kept(kind):
    chunk, vocabulary = 4, 1000
    hidden, head, labels, weights = case(2, 31, 8, vocabulary, share=1.0)
    hidden.requires_grad_()
    head.requires_grad_(False)
    model, saved = OnlyHead(head), []
    with (
        supervised_head(model, kind, chunk) as supervised,
        torch.autograd.graph.saved_tensors_hooks(lambda t: saved.append(t) or t, lambda t: t),
    ):
        supervised.expect(labels, weights)
        with Sizes() as sizes:
            loss = model(hidden)
    assert loss.requires_grad
    learnt = 2 * 30
    if kind == "chunked":
        assert sizes.largest == max(chunk * vocabulary, 8 * vocabulary)  # of a chunk, or the weight
        del saved
        assert sizes.alive(chunk * vocabulary) == 0
    else:  # what the test above can tell apart
        assert sizes.largest == learnt * vocabulary
        assert max(tensor.numel() for tensor in saved) == learnt * vocabulary


def test_shifted_labels_and_wrong_weights_give_other_numbers():
    hidden, head, labels, weights = case(share=1.0)
    model = OnlyHead(head)

    def loss(labels, weights):
        with supervised_head(model, "chunked", 4) as supervised:
            supervised.expect(labels, weights)
            return model(hidden).item()

    right = loss(labels, weights)
    for shift in (-1, 1):
        assert abs(loss(labels.roll(shift, 1), weights) - right) > 1e-2
        assert abs(loss(labels, weights.roll(shift, 1)) - right) > 1e-2
    fewer = labels.clone()
    fewer[0, 3] = IGNORED
    assert abs(loss(fewer, weights) - right) > 1e-2
    first = labels.clone()
    first[:, 0] = 0  # what nothing predicts has no part
    assert loss(first, weights) == right


def test_recomputed_activations_change_nothing():
    model = tiny_model("qwen3_vl", layers=3).double().train()
    batch = tiny_batch("qwen3_vl", with_image=False)
    labels, weights = batch["input_ids"], torch.full(batch["input_ids"].shape, 0.1)
    found = []
    for checkpointing in (False, True):
        if checkpointing:
            model.gradient_checkpointing_enable({"use_reentrant": False})
        with supervised_head(model, "chunked", 4) as head:
            head.expect(labels, weights)
            loss = model(**batch, use_cache=False).logits
            found.append((loss, *gradients(loss, *model.model.language_model.layers.parameters())))
    for one, other in zip(*found, strict=True):
        assert torch.allclose(one, other, rtol=0, atol=1e-12)


def test_each_forward_must_be_told_what_to_learn_and_restore_gives_the_forward_back():
    hidden, head, labels, weights = case()
    model = OnlyHead(head)
    before = model(hidden)
    supervised = SupervisedHead(model, "chunked")
    supervised.expect(labels, weights)
    model(hidden)
    with pytest.raises(AssertionError, match="expect"):
        model(hidden)
    supervised.expect(labels[:, 1:], weights[:, 1:])
    with pytest.raises(AssertionError):
        model(hidden)
    supervised.restore()
    assert torch.equal(model(hidden), before)
    assert "forward" not in vars(head)
    head.forward = own = lambda states: 2 * F.linear(states, head.weight)  # a patch of another's
    with supervised_head(model, "supervised"):
        assert head.forward is not own
    assert head.forward is own


def test_families_that_change_logits_behind_the_head_are_refused():
    capped = tiny_model("gemma3_text", layers=2, final_logit_softcapping=30.0)
    assert "final_logit_softcapping" in head_refusal(capped)
    with pytest.raises(InputError, match=r"finetune\.levers\.head.*final_logit_softcapping.*full"):
        SupervisedHead(capped, "chunked")
    model = OnlyHead(torch.nn.Linear(2, 3))
    assert "bias" in head_refusal(model)
    model = OnlyHead(torch.nn.Identity())
    assert "Identity" in head_refusal(model)
