import json

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file
from transformers import LlamaConfig, LlamaForCausalLM

from interlace.data.chat import load_records
from interlace.data.collate import encode, pad
from interlace.decoder.layers import BoundaryRecorder, decoder_layers
from interlace.decoder.load import load_model, load_processor
from interlace.decoder.replay import DecoderCall
from interlace.errors import InputError
from interlace.sparsity.run import sparsify
from interlace.sparsity.two_four import _zero, prune_two_four, two_four_report
from tests.tiny import make_tiny_checkpoint, make_tiny_samples

NUM_LINEARS = 7  # q, k, v, o, gate, up, down


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    root = tmp_path_factory.mktemp("sparsity")
    make_tiny_checkpoint(root / "base", layers=5)
    make_tiny_samples(root / "samples", rows=2)
    return root


@pytest.fixture(scope="module")
def batches(root):
    """Padded batches, text and images mixed."""
    processor = load_processor(root / "base")
    encoded = [encode(record, processor) for record in load_records(root / "samples")]
    fill = processor.tokenizer.pad_token_id
    return [pad(encoded[start::3], fill, "right") for start in range(3)]


def linears(layer):
    return [(n, m) for n, m in layer.named_modules() if isinstance(m, torch.nn.Linear)]


def oracle_masks(model, batches):
    """Prune `model` by brute force: whole forward passes, statistics in float64, one layer a time."""
    masks = {}
    for index, layer in enumerate(decoder_layers(model)):
        squares = {}

        def collect(name, squares=squares):
            def hook(_module, args):
                squares.setdefault(name, []).append(args[0].double())

            return hook

        handles = [m.register_forward_pre_hook(collect(n)) for n, m in linears(layer)]
        with torch.no_grad():
            for batch in batches:
                inputs = {key: value for key, value in batch.items() if key != "labels"}
                model(**inputs)
        for handle in handles:
            handle.remove()
        for name, linear in linears(layer):
            total = torch.zeros(linear.in_features, dtype=torch.float64)
            for batch, x in zip(batches, squares[name], strict=True):
                for row, real in zip(x, batch["attention_mask"].bool(), strict=True):
                    total += (row[real] ** 2).sum(0)
            metric = linear.weight.detach().double().abs() * total.sqrt()
            mask = torch.zeros_like(metric, dtype=torch.bool)
            for r in range(metric.shape[0]):
                for c in range(0, metric.shape[1], 4):
                    smallest = sorted(range(c, c + 4), key=lambda k: float(metric[r, k]))[:2]
                    mask[r, smallest] = True
            linear.weight.data[mask] = 0
            masks[f"{index}.{name}"] = mask
    return masks


@pytest.mark.parametrize("dtype", ["float64", "float32"])
def test_wanda_equals_brute_force(root, batches, dtype):
    expected = oracle_masks(load_model(root / "base", dtype="float64"), batches)
    model = load_model(root / "base", dtype=dtype)
    prune_two_four(model, "wanda_2_4", batches)
    assert len(expected) == 5 * NUM_LINEARS
    for index, layer in enumerate(decoder_layers(model)):
        for name, linear in linears(layer):
            assert torch.equal(linear.weight == 0, expected[f"{index}.{name}"]), (index, name)


def test_pruned_layers_feed_the_next(root, batches):
    # With inputs of the dense model instead, masks after the first layer differ.
    model, dense = load_model(root / "base"), load_model(root / "base")
    prune_two_four(model, "wanda_2_4", batches)
    calls = [DecoderCall(dense, batch) for batch in batches]
    previous = [None] * len(calls)
    for index in range(2):
        previous = [c.run_layer(index, p) for c, p in zip(calls, previous, strict=True)]
    with BoundaryRecorder(model) as record, torch.no_grad():
        model(**{key: value for key, value in batches[0].items() if key != "labels"})
    assert (record.outputs[1] - previous[0]).abs().max() > 1e-2


def test_a_layer_runs_alone_as_in_the_model(root, batches):
    model = load_model(root / "base")
    for batch in batches:
        inputs = {key: value for key, value in batch.items() if key != "labels"}
        with BoundaryRecorder(model) as record, torch.no_grad():
            model(**inputs)
        with torch.no_grad():
            call, previous = DecoderCall(model, batch), None
            for index in range(5):
                previous = call.run_layer(index, previous)
                assert torch.equal(previous, record.outputs[index])
    assert len(decoder_layers(model)) == 5


def test_batching_does_not_change_wanda(root, tmp_path):
    weights = []
    for size in (1, 3):
        settings = {"samples": 4, "max_length": 256, "batch_size": size}
        sparsify(root / "base", tmp_path / f"{size}", "wanda", root / "samples", settings, 0)
        weights.append(load_file(tmp_path / f"{size}" / "model.safetensors"))
    assert all(torch.equal(weights[0][name], weights[1][name]) for name in weights[0])


def test_a_text_only_decoder_runs_layer_by_layer():
    sizes = {"vocab_size": 64, "hidden_size": 16, "intermediate_size": 32}
    config = LlamaConfig(**sizes, num_hidden_layers=3, num_attention_heads=2)
    model = LlamaForCausalLM(config).eval()
    tokens = torch.arange(8)[None]
    prune_two_four(
        model, "wanda_2_4", [{"input_ids": tokens, "attention_mask": torch.ones_like(tokens)}]
    )
    report = two_four_report(model)
    assert report["groups_with_two_zeros"] == report["groups"]


@pytest.mark.parametrize("method", ["wanda_2_4", "magnitude_2_4"])
def test_only_decoder_matrices_change_and_half_of_them_is_zero(root, tmp_path, method):
    sparsify(
        root / "base", tmp_path / "m" / "out", method, root / "samples",
        {"samples": 3, "max_length": 256, "batch_size": 2}, 0,
    )  # fmt: skip
    base = load_file(root / "base" / "model.safetensors")
    pruned = load_file(tmp_path / "m" / "out" / "model.safetensors")
    assert base.keys() == pruned.keys()
    for name, weight in pruned.items():
        if "language_model.layers" in name and weight.dim() == 2:
            assert ((weight.reshape(-1, 4) == 0).sum(1) == 2).all()
            kept = weight != 0
            assert torch.equal(weight[kept], base[name][kept])
        else:
            assert torch.equal(weight, base[name])
    record = json.loads((tmp_path / "m" / "out" / "interlace.json").read_text())
    sparsity = record["sparsity"]
    assert sparsity["sparsity_percent"] == 50.0
    assert sparsity["groups_with_two_zeros"] == sparsity["groups"]
    assert sparsity["num_tensors"] == 5 * NUM_LINEARS
    assert len(sparsity["calibration"]) == (3 if method == "wanda_2_4" else 0)
    assert record["provenance"]["num_samples"] == (3 if method == "wanda_2_4" else None)


def test_magnitude_keeps_the_largest(root):
    model, base = load_model(root / "base"), load_model(root / "base")
    prune_two_four(model, "magnitude_2_4")
    for layer, dense in zip(decoder_layers(model), decoder_layers(base), strict=True):
        for (_, left), (_, right) in zip(linears(layer), linears(dense), strict=True):
            groups = right.weight.abs().reshape(-1, 4)
            largest = groups.sort(1).values[:, 2:].sum(1)
            torch.testing.assert_close(left.weight.abs().reshape(-1, 4).sum(1), largest)


@settings(deadline=None, max_examples=50)
@given(st.lists(st.lists(st.integers(0, 3), min_size=8, max_size=8), min_size=1, max_size=4))
def test_two_of_four_whatever_the_ties(rows):
    metric = torch.tensor(rows, dtype=torch.float32)
    linear = torch.nn.Linear(8, len(rows), bias=False)
    torch.nn.init.ones_(linear.weight)
    with torch.no_grad():
        _zero(linear, metric)
    kept = linear.weight.reshape(-1, 4) != 0
    assert (kept.sum(1) == 2).all()
    groups = metric.reshape(-1, 4)
    lowest_kept = groups.masked_fill(~kept, 9).amin(1)
    assert (groups.masked_fill(kept, -1).amax(1) <= lowest_kept).all()


def test_report_counts_a_dense_model(root):
    report = two_four_report(load_model(root / "base"))
    assert report["zeros"] == report["groups_with_two_zeros"] == 0
    assert report["weights"] == 4 * report["groups"] > 0


def test_wrong_requests_are_refused(root):
    model = load_model(root / "base")
    with pytest.raises(InputError, match="choose one of"):
        prune_two_four(model, "sparsegpt")
    with pytest.raises(InputError, match="needs calibration samples"):
        prune_two_four(model, "wanda_2_4", [])
    assert two_four_report(model)["zeros"] == 0
