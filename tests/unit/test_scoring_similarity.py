"""Window scores against a direct float64 computation from every layer's input and raw output."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from interlace.data.chat import load_records
from interlace.data.collate import encode, encode_prompt, pad
from interlace.decoder.layers import decoder_layers
from interlace.decoder.load import load_model, load_processor
from interlace.scoring.similarity import WindowRecorder, window_sums
from interlace.scoring.store import window_list
from tests.boundaries import BoundaryRecorder
from tests.tiny import make_tiny_checkpoint, make_tiny_samples
from tests.unit.window_oracle import window_scores

DEPTHS = {"shallow": 4, "deep": 9}


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    """Two random Qwen3-VL (DeepStack after layers 0 to 2) and a text-only Llama, by name."""
    from transformers import LlamaConfig, LlamaForCausalLM

    folder = tmp_path_factory.mktemp("scoring")
    models = {}
    for seed, (name, layers) in enumerate(DEPTHS.items()):
        make_tiny_checkpoint(folder / name, layers=layers, seed=seed)
        models[name] = load_model(folder / name)
    torch.manual_seed(5)
    sizes = {"hidden_size": 24, "intermediate_size": 48, "num_attention_heads": 4}
    config = LlamaConfig(vocab_size=400, num_hidden_layers=6, initializer_range=0.3, **sizes)
    models["llama"] = LlamaForCausalLM(config).eval()
    return models


@pytest.fixture(scope="module")
def samples(tmp_path_factory):
    folder = tmp_path_factory.mktemp("samples")
    make_tiny_samples(folder / "samples", rows=4)
    processor = load_processor(make_tiny_checkpoint(folder / "model"))
    records = load_records(folder / "samples")
    encoded = [encode(record, processor) for record in records]
    encoded += [encode_prompt(record, processor) for record in records]
    assert any("pixel_values" in sample for sample in encoded)
    assert any("pixel_values" not in sample for sample in encoded)
    return encoded


def fitting(model, samples):
    """The samples a model can read: without a vision tower, those without images."""
    if hasattr(model.config, "image_token_id"):
        return samples
    keys = ("input_ids", "attention_mask", "labels")
    return [
        {key: sample[key] for key in keys if key in sample}
        for sample in samples
        if "pixel_values" not in sample
    ]


def oracle(model, sample, max_window):
    """Sums (W, 2), counts (2,) and angles (W,) of one unpadded sample, from the definition."""
    return [scores[0] for scores in window_scores(model, sample, max_window)]


_known = {}


def expected(name, model, index, sample, max_window):
    if (name, index) not in _known:
        _known[name, index] = oracle(model, sample, len(decoder_layers(model)))
    sums, counts, angles = _known[name, index]
    num_windows = len(window_list(len(decoder_layers(model)), range(1, max_window + 1)))
    return sums[:num_windows], counts, angles[:num_windows]


@settings(deadline=None, max_examples=30)
@given(data=st.data())
def test_all_scores_equal_the_oracle_in_batches_of_any_size_and_order(models, samples, data):
    name = data.draw(st.sampled_from(sorted(models)))
    model = models[name]
    depth = len(decoder_layers(model))
    usable = fitting(model, samples)
    order = data.draw(st.permutations(range(len(usable))))[: data.draw(st.integers(1, 12))]
    size = data.draw(st.integers(1, 6))
    side = data.draw(st.sampled_from(["left", "right"]))
    max_window = data.draw(st.integers(1, depth))
    chosen = [{k: v for k, v in usable[i].items() if k != "labels"} for i in order]
    batches = (pad(chosen[i : i + size], 0, side) for i in range(0, len(chosen), size))
    sums, counts, angles = window_sums(model, batches, max_window)
    wanted = [expected(name, model, i, usable[i], max_window) for i in order]
    all_sums, all_counts, all_angles = (np.stack(part) for part in zip(*wanted, strict=True))
    np.testing.assert_array_equal(counts, all_counts)
    np.testing.assert_allclose(angles, all_angles, rtol=0, atol=1e-5)
    tokens_N1 = counts.sum(1, keepdims=True)
    np.testing.assert_allclose(  # each sample's mean, and each modality's
        sums.sum(2) / tokens_N1, all_sums.sum(2) / tokens_N1, rtol=0, atol=1e-5
    )
    per_modality = counts.clip(1)[:, None]
    np.testing.assert_allclose(sums / per_modality, all_sums / per_modality, rtol=0, atol=1e-5)
    np.testing.assert_allclose(  # the token mean over all samples
        sums.sum((0, 2)) / counts.sum(), all_sums.sum((0, 2)) / counts.sum(), rtol=0, atol=1e-5
    )


def test_a_mask_that_counts_padding_fails_the_oracle(models, samples):
    model = models["deep"]
    short, long = sorted(samples, key=lambda s: s["input_ids"].shape[1])[:: len(samples) - 1]
    batch = pad([{k: v for k, v in s.items() if k != "labels"} for s in (short, long)], 0)
    with torch.inference_mode(), WindowRecorder(model, 3) as recorder:
        recorder.start(batch | {"attention_mask": torch.ones_like(batch["attention_mask"])})
        model.base_model(**batch, use_cache=False)
        sums, _ = recorder.take()
    wanted, counts, _ = oracle(model, short, 3)
    assert np.abs(sums[0].numpy() / counts.clip(1) - wanted / counts.clip(1)).max() > 1e-2


def test_deepstack_counts_as_part_of_the_layer_it_follows(models, samples):
    model = models["shallow"]
    sample = next(s for s in samples if "pixel_values" in s and "labels" not in s)
    with BoundaryRecorder(model) as record:
        sums, counts, _ = window_sums(model, [sample], 1)
    cosine = torch.cosine_similarity(record.inputs[0][0], record.outputs[0][0], dim=-1)
    visual = sample["input_ids"][0] == model.config.image_token_id
    text_mean, visual_mean = sums[0, 0] / counts[0]
    assert text_mean == pytest.approx(float(cosine[~visual].mean()), abs=1e-6)
    assert abs(visual_mean - float(cosine[visual].mean())) > 1e-4


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
def test_sums_of_a_narrow_model_are_float32_also_under_autocast(models, samples, dtype, tmp_path):
    folder = make_tiny_checkpoint(tmp_path / "model", layers=6)
    names = {torch.bfloat16: "bfloat16", torch.float16: "float16", torch.float64: "float64"}
    model = load_model(folder, names[dtype])
    sample = next(s for s in samples if "pixel_values" in s and "labels" not in s)
    wanted, counts, wanted_angles = oracle(model, sample, 3)
    before = torch.get_float32_matmul_precision()
    try:
        torch.set_float32_matmul_precision("medium")
        with torch.autocast("cpu", torch.bfloat16):
            sums, _, angles = window_sums(model, [sample], 3)
        assert torch.get_float32_matmul_precision() == "medium"
    finally:
        torch.set_float32_matmul_precision(before)
    atol = 1e-12 if dtype == torch.float64 else 1e-6
    np.testing.assert_allclose(sums[0] / counts, wanted / counts, rtol=0, atol=atol)
    np.testing.assert_allclose(angles[0], wanted_angles, rtol=0, atol=1e-6)


def test_no_logits_are_made_and_no_hook_stays(models, samples):
    model = models["shallow"]
    handle = model.get_output_embeddings().register_forward_hook(
        lambda *_: pytest.fail("logits were made")
    )
    window_sums(model, [samples[0]], 3)
    handle.remove()
    hooks = [(layer._forward_hooks, layer._forward_pre_hooks) for layer in decoder_layers(model)]
    assert not any(part for pair in hooks for part in pair)
