"""A packed row does to every sample, and to the tuned layers, what the sample does alone."""

import itertools
import pickle

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn import functional
from torch.utils.checkpoint import CheckpointError

from interlace.data.chat import Record
from interlace.data.collate import IGNORED, encode
from interlace.data.packing import SamplePositions, bins, pack
from interlace.decoder.layers import decoder_layers, text_config
from interlace.decoder.surgery import drop_layers
from interlace.errors import InputError
from interlace.training import attention
from interlace.training.attention import PER_SAMPLE, PackedAttention, packing_refusal
from tests.tiny import tiny_image
from tests.tiny_families import (
    FAMILIES,
    TEXT_FAMILIES,
    WITH_PROCESSOR,
    tiny_batch,
    tiny_model,
    tiny_processor,
)

TUNED = (2, 4)
IMAGES = (0, 1, 2, 0, 1)  # of each sample
EXACT = {"rtol": 1e-9, "atol": 1e-10}


@pytest.fixture(scope="module", autouse=True)
def one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def encoded(family):
    """Samples of text, one and two pictures; every token has a label, the first one too."""
    made = []
    for place, count in enumerate(IMAGES):
        rng = np.random.default_rng(place)
        if family in WITH_PROCESSOR:
            turn = {"user": f"What is {place}?", "assistant": f"It is {place}. " * (place + 1)}
            pictures = [tiny_image(rng) for _ in range(count)]
            record = Record(str(place), "s", pictures, [turn] * (1 + place % 2))
            made.append(encode(record, tiny_processor(family)))
        else:
            made.append(tiny_batch(family, family not in TEXT_FAMILIES and count > 0, seed=place))
            ids = made[-1]["input_ids"]
            more = torch.tensor(rng.integers(0, 50, (1, 3 * place)))
            made[-1]["input_ids"] = torch.cat([ids, more], dim=1)
            made[-1]["attention_mask"] = torch.ones_like(made[-1]["input_ids"])
        made[-1]["labels"] = made[-1]["input_ids"].clone()
        made[-1]["weights"] = torch.full(made[-1]["labels"].shape, 0.5 + place)
    assert len({sample["labels"].shape[1] for sample in made}) > 3
    return made


def built(family, drop=()):
    """A model in float64, layers 2 and 4 of those that stay to be tuned."""
    model = tiny_model(family).double().requires_grad_(False)
    if family == "qwen3_vl_moe":
        model.set_experts_implementation("eager")  # the grouped one knows no float64
    if drop:
        drop_layers(model, drop)
    for index in TUNED:
        decoder_layers(model)[index].requires_grad_(True)
    return model


def token_losses(model, inputs, labels, weights):
    """Weighted cross-entropy at every token of the row but the last: (T - 1,)."""
    logits = model(**inputs, use_cache=False).logits[0, :-1]
    losses = functional.cross_entropy(logits, labels[0, 1:], ignore_index=IGNORED, reduction="none")
    return losses * weights[0, 1:]


def gradients(model):
    found = [p.grad.clone() for p in model.parameters() if p.grad is not None]
    model.zero_grad(set_to_none=True)
    assert len(found) > 2 * len(TUNED)
    return found


def alone(model, samples):
    """Each sample's loss by itself, and the gradients of their sum."""
    sums = []
    for sample in samples:
        rest = {k: v for k, v in sample.items() if k not in ("labels", "weights")}
        sums.append(token_losses(model, rest, sample["labels"], sample["weights"]).sum())
        sums[-1].backward()
    return torch.stack(sums).detach(), gradients(model)


def packed(model, samples, change=None, starts=None, attend=None, backward_starts=None):
    """The same from one row; `change` may spoil the row, `starts` what the attention is told."""
    row, real = pack(samples, SamplePositions(model))
    row.update(change(row, real) if change else {})
    attend = attend or PackedAttention(model)
    attend.set(real if starts is None else starts)
    losses = token_losses(model, row, row.pop("labels"), row.pop("weights"))
    if backward_starts is not None:
        attend.set(backward_starts)
    losses.sum().backward()
    attend.restore()
    ends = [(int(a), int(b)) for a, b in itertools.pairwise(real)]
    sums = [losses[max(0, start - 1) : end - 1].sum() for start, end in ends]
    return torch.stack(sums).detach(), gradients(model)


def assert_same(found, wanted, **tolerance):
    close = {**EXACT, **tolerance}
    torch.testing.assert_close(found[0], wanted[0], **close)
    for gradient, other in zip(found[1], wanted[1], strict=True):
        most = other.abs().max()
        torch.testing.assert_close(gradient / most, other / most, **close)


def assert_different(found, wanted):
    """Visibly so: not by rounding."""
    assert (found[0] - wanted[0]).abs().max() > 1e-4
    assert max((a - b).abs().max() for a, b in zip(found[1], wanted[1], strict=True)) > 1e-4


@pytest.mark.parametrize("family", FAMILIES)
def test_every_sample_and_every_gradient_are_as_alone(family):
    model = built(family)
    if family == "gemma3":
        assert "both ways" in packing_refusal(model.config)
        with pytest.raises(InputError, match="both ways"):
            PackedAttention(model)
        return
    assert packing_refusal(model.config) is None
    samples = encoded(family)
    wanted = alone(model, samples)
    # Gemma's norms round to float32 whatever they get.
    rounded = {"rtol": 1e-6, "atol": 1e-6} if family == "gemma3_text" else {}
    assert_same(packed(model, samples), wanted, **rounded)
    assert_same(packed(model, samples, attend=PackedAttention(model, "sdpa")), wanted, **rounded)


@pytest.mark.parametrize("family", ["qwen3_vl", "qwen2_vl", "qwen3"])
def test_where_a_sample_stands_in_its_row_does_not_matter(family):
    model, samples = built(family), encoded(family)
    losses, wanted = packed(model, samples)
    order = [3, 1, 4, 0, 2]
    other = packed(model, [samples[place] for place in order])
    assert_same(other, (losses[order], wanted))


@pytest.mark.parametrize("family", ["qwen3_vl", "qwen2_5_vl", "llama"])
def test_recomputed_activations_attend_within_the_same_samples(family, monkeypatch):
    model, samples = built(family), encoded(family)
    wanted = alone(model, samples)
    calls = []
    inner = attention._attend_in_turn
    monkeypatch.setattr(
        attention, "_attend_in_turn", lambda *a: calls.append(1) or inner(*a), raising=True
    )
    model.train()
    old_name = "gradient_checkpointing_enable"  # transformers before 5.18 or so
    enable = getattr(model, "activation_checkpointing_enable", None) or getattr(model, old_name)
    enable({"use_reentrant": False})
    assert_same(packed(model, samples), wanted)
    assert len(calls) > len(decoder_layers(model))
    # What `set` says must hold until the backward pass is over.
    length = sum(sample["labels"].shape[1] for sample in samples)
    with pytest.raises(CheckpointError, match="different number of tensors"):
        packed(model, samples, backward_starts=[0, length])


@pytest.mark.parametrize("family", ["qwen3_vl", "qwen2_5_vl", "qwen3"])
def test_after_layers_were_dropped(family):
    model, samples = built(family, drop=[1]), encoded(family)  # at Qwen3-VL a DeepStack position
    assert_same(packed(model, samples), alone(model, samples))


def run_on(row, starts):
    places = torch.arange(row["input_ids"].shape[1])
    return {"position_ids": places.expand(row["position_ids"].shape)}


def keep_first_labels(row, starts):
    ids, weights = row["input_ids"], row["weights"].clone()
    weights[weights == 0] = 1.0
    return {"labels": ids.clone(), "weights": weights}


@pytest.mark.parametrize("family", ["qwen3_vl", "qwen2_5_vl", "qwen2_vl"])
@pytest.mark.parametrize("wrong", ["attention", "positions", "positions under sdpa", "first label"])
def test_a_row_that_is_wrong_shows(family, wrong):
    model, samples = built(family), encoded(family)
    wanted = alone(model, samples)
    length = sum(sample["labels"].shape[1] for sample in samples)
    found = {
        "attention": lambda: packed(model, samples, starts=[0, length]),
        "positions": lambda: packed(model, samples, run_on),
        "positions under sdpa": lambda: packed(
            model, samples, run_on, attend=PackedAttention(model, "sdpa")
        ),
        "first label": lambda: packed(model, samples, keep_first_labels),
    }[wrong]()
    assert_different(found, wanted)


def test_only_the_decoder_changes_and_no_checkpoint_names_it(tmp_path):
    model = tiny_model("qwen3_vl")
    before = model.config.vision_config._attn_implementation
    attend = PackedAttention(model)
    assert text_config(model.config)._attn_implementation == PER_SAMPLE
    assert model.config.vision_config._attn_implementation == before == "sdpa"
    model.save_pretrained(tmp_path)
    assert PER_SAMPLE not in (tmp_path / "config.json").read_text()
    PackedAttention(model).restore()  # one that found it set leaves it so
    assert text_config(model.config)._attn_implementation == PER_SAMPLE
    attend.restore()
    assert text_config(model.config)._attn_implementation == "sdpa"


def test_a_row_is_as_its_samples_say():
    model, samples = tiny_model("qwen3_vl"), encoded("qwen3_vl")
    row, starts = pack(samples, SamplePositions(model))
    lengths = [sample["input_ids"].shape[1] for sample in samples]
    assert starts.dtype == torch.int32
    assert starts.tolist() == [0, *np.cumsum(lengths)]
    assert "attention_mask" not in row
    for key in ("input_ids", "labels", "weights", "mm_token_type_ids"):
        assert row[key].shape == (1, sum(lengths))
    first = starts[:-1].long()
    assert (row["labels"][0, first] == IGNORED).all()
    assert (row["weights"][0, first] == 0).all()
    assert (row["labels"] == IGNORED).sum() == len(samples) == (row["weights"] == 0).sum()
    assert all((sample["labels"] != IGNORED).all() for sample in samples)  # theirs are untouched
    for key in ("pixel_values", "image_grid_thw"):
        joined = torch.cat([sample[key] for sample in samples if key in sample])
        assert torch.equal(row[key], joined)
    assert row["position_ids"].shape == (4, 1, sum(lengths))
    assert (row["position_ids"][:, 0, first] == 0).all()
    counted = torch.cat([torch.arange(length) for length in lengths])
    assert torch.equal(row["position_ids"][0, 0], counted)
    text = pack(encoded("llama"), SamplePositions(tiny_model("llama")))[0]
    assert text["position_ids"].shape == text["input_ids"].shape


def test_positions_travel_to_other_processes_without_weights():
    model, samples = tiny_model("qwen2_5_vl"), encoded("qwen2_5_vl")
    bytes_ = pickle.dumps(SamplePositions(model))
    assert len(bytes_) < sum(p.numel() for p in model.parameters())  # a quarter of their bytes
    positions = pickle.loads(bytes_)
    assert not list(positions._of_class.parameters())
    seen = []
    model.get_decoder().register_forward_pre_hook(
        lambda _module, _args, kwargs: seen.append(kwargs["position_ids"]), with_kwargs=True
    )
    for sample in samples:
        with torch.no_grad():
            model(**{k: v for k, v in sample.items() if k not in ("labels", "weights")})
        found = positions(sample)
        wanted = seen[-1] if seen[-1] is not None else found[0].expand(3, -1, -1)
        assert torch.equal(found[1:], wanted)
    assert sum(one is not None for one in seen) == 3


def test_padding_and_samples_of_unequal_keys_are_no_row():
    samples, positions = encoded("llama"), SamplePositions(tiny_model("llama"))
    del samples[1]["weights"]
    with pytest.raises(AssertionError, match="have no weights"):
        pack(samples, positions)
    samples[1]["attention_mask"][0, 0] = 0
    with pytest.raises(AssertionError, match="padded"):
        pack(samples[1:2], positions)


def test_what_is_no_packed_row_is_not_attended_to():
    model, samples = tiny_model("qwen3"), encoded("qwen3")
    row, starts = pack(samples, SamplePositions(model))
    del row["labels"], row["weights"]
    attend = PackedAttention(model)
    with pytest.raises(AssertionError, match="was not called"):
        model(**row)
    attend.set(starts[:-1])
    with pytest.raises(AssertionError, match="samples end at"):
        model(**row)
    attend.set(starts)
    with pytest.raises(AssertionError, match="no padding"):
        model(**row, attention_mask=torch.ones_like(row["input_ids"]))
    for wrong in ([0], [1, 3], [0, 3, 3]):
        with pytest.raises(AssertionError):
            attend.set(wrong)


def test_what_cannot_be_had_is_refused_by_name():
    with pytest.raises(InputError, match="choose one of auto, varlen, sdpa"):
        PackedAttention(tiny_model("llama"), "eager")
    rope = {"rope_type": "dynamic", "rope_theta": 1e4, "factor": 2.0}
    assert "longest sample" in packing_refusal(tiny_model("llama", rope_parameters=rope).config)
    model = tiny_model("llama")
    model.config.model_type = "other"
    assert "not tested" in packing_refusal(model.config)
    if not torch.cuda.is_available():
        with pytest.raises(InputError, match="backward"):
            PackedAttention(tiny_model("llama"), "flex_attention")
        with pytest.raises(InputError, match="flash_attn"):
            PackedAttention(tiny_model("llama"), "flash_attention_2")


LENGTHS = st.lists(st.integers(1, 40), max_size=30)


@given(LENGTHS, st.integers(1, 50))
def test_bins_hold_every_sample_once_within_the_budget(lengths, budget):
    rows = bins(lengths, budget)
    assert sorted(itertools.chain(*rows)) == list(range(len(lengths)))
    totals = [sum(lengths[index] for index in row) for row in rows]
    for row, total in zip(rows, totals, strict=True):
        assert row == sorted(row)
        assert total <= budget or len(row) == 1
    for (i, total), (j, other) in itertools.combinations(enumerate(totals), 2):
        assert total + other > budget, f"rows {i} and {j} would fit into one"


def fewest(lengths, budget):
    """The fewest rows possible, by trying all."""
    best = len(lengths)

    def place(index, room):
        nonlocal best
        if len(room) >= best:
            return
        if index == len(lengths):
            best = len(room)
            return
        for row, left in enumerate(room):
            if lengths[index] <= left:
                room[row] -= lengths[index]
                place(index + 1, room)
                room[row] += lengths[index]
        place(index + 1, [*room, budget - lengths[index]])

    place(0, [])
    return best


@settings(deadline=None)
@given(st.lists(st.integers(1, 20), min_size=1, max_size=8), st.integers(20, 30))
def test_bins_are_nearly_as_few_as_can_be(lengths, budget):
    assert 9 * len(bins(lengths, budget)) <= 11 * fewest(lengths, budget) + 6


def test_equal_samples_are_packed_in_their_order():
    assert bins([3, 7, 3, 3, 12, 3], 10) == [[4], [0, 1], [2, 3, 5]]
    assert bins([], 10) == []
