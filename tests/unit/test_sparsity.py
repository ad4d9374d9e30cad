import json
import weakref

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file

from interlace.data.chat import load_records
from interlace.data.collate import encode, pad
from interlace.decoder.layers import decoder_layers
from interlace.decoder.load import load_model, load_processor
from interlace.errors import InputError
from interlace.sparsity.kernels import _failed_trial, is_two_four, use_sparse_kernels
from interlace.sparsity.run import sparsify
from interlace.sparsity.two_four import _zero, prune_two_four, two_four_report
from tests.tiny import make_tiny_checkpoint, make_tiny_samples
from tests.tiny_families import FAMILIES, LAYERS, tiny_batch, tiny_model
from tests.unit.wanda_oracle import linears, oracle_masks

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


@pytest.fixture(scope="module")
def expected(root, batches):
    return oracle_masks(load_model(root / "base", dtype="float64"), batches)


@pytest.mark.parametrize("dtype", ["float64", "float32"])
def test_wanda_equals_brute_force(root, batches, expected, dtype):
    model = load_model(root / "base", dtype=dtype)
    prune_two_four(model, "wanda_2_4", batches)
    assert len(expected) == 5 * NUM_LINEARS
    for index, layer in enumerate(decoder_layers(model)):
        for name, linear in linears(layer):
            assert torch.equal(linear.weight == 0, expected[f"{index}.{name}"]), (index, name)


def sparse(root, out, method, settings):
    sparsify(root / "base", out, method, root / "samples", settings, 0, model="key")


def test_batching_does_not_change_wanda(root, tmp_path):
    weights = []
    for size in (1, 1000):
        settings = {"samples": 4, "max_length": 256, "batch_tokens": size}
        sparse(root, tmp_path / f"{size}", "wanda", settings)
        weights.append(load_file(tmp_path / f"{size}" / "model.safetensors"))
    assert all(torch.equal(weights[0][name], weights[1][name]) for name in weights[0])


def test_samples_that_cannot_be_used_are_named(root, tmp_path):
    settings = {"samples": 8, "max_length": 30, "batch_tokens": 512}
    sparse(root, tmp_path / "out", "wanda", settings)
    calibration = json.loads((tmp_path / "out" / "interlace.json").read_text())["sparsity"]
    calibration = calibration["calibration"]
    assert calibration["asked_for"] == 8
    left_out = {item["id"]: item["reason"] for item in calibration["left_out"]}
    assert set(left_out.values()) == {"dropped_too_long"}
    assert len(left_out) == 2
    assert sorted([*left_out, *calibration["samples"]]) == [
        record.id for record in load_records(root / "samples", calibration_only=True)
    ]
    with pytest.raises(InputError, match=r"sparsity\.max_length"):
        sparse(root, tmp_path / "none", "wanda", settings | {"max_length": 16})


@pytest.mark.parametrize("method", ["wanda", "magnitude"])
def test_only_decoder_matrices_change_and_half_of_them_is_zero(root, tmp_path, method):
    settings = {"samples": 3, "max_length": 256, "batch_tokens": 512, "dtype": None}
    sparse(root, tmp_path / "m" / "out", method, settings)
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
    assert (record["model"], record["variant"], sparsity["method"]) == (
        "key", f"{method}_2_4", f"{method}_2_4",
    )  # fmt: skip
    assert sparsity["sparsity_percent"] == 50.0
    assert sparsity["groups_with_two_zeros"] == sparsity["groups"]
    assert sparsity["num_tensors"] == 5 * NUM_LINEARS
    if method == "magnitude":
        assert sparsity["calibration"] is record["provenance"]["num_samples"] is None
        return
    calibration = sparsity["calibration"]
    assert len(calibration["samples"]) == record["provenance"]["num_samples"] == 3
    assert (calibration["asked_for"], calibration["max_length"]) == (3, 256)
    assert calibration["left_out"] == []
    assert "whole conversations" in calibration["text"]


def test_magnitude_keeps_the_largest(root):
    model, base = load_model(root / "base"), load_model(root / "base")
    prune_two_four(model, "magnitude_2_4")
    for layer, dense in zip(decoder_layers(model), decoder_layers(base), strict=True):
        for (_, left), (_, right) in zip(linears(layer), linears(dense), strict=True):
            groups = right.weight.abs().reshape(-1, 4)
            largest = groups.sort(1).values[:, 2:].sum(1)
            torch.testing.assert_close(left.weight.abs().reshape(-1, 4).sum(1), largest)


def test_magnitudes_are_compared_in_the_models_own_precision():
    model = tiny_model("llama").double()
    weight = decoder_layers(model)[0].mlp.up_proj.weight
    weight.data[0, :4] = 1 + 1e-12 * torch.tensor([4, -3, 2, 1], dtype=torch.float64)
    prune_two_four(model, "magnitude_2_4")
    assert (weight[0, :4] != 0).tolist() == [True, False, True, False]


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
    with pytest.raises(InputError, match="'wanda_2_4': choose wanda or magnitude"):
        sparse(root, root / "none", "wanda_2_4", {})
    assert two_four_report(model)["zeros"] == 0


@pytest.mark.parametrize("method", ["magnitude_2_4", "wanda_2_4"])
def test_weights_that_are_not_finite_are_one_clear_error(root, batches, method):
    model = load_model(root / "base")
    decoder_layers(model)[3].mlp.up_proj.weight.data[0, 5] = float("nan")
    with pytest.raises(InputError, match=r"layers\.3\.mlp\.up_proj\.weight holds NaN or infinity"):
        prune_two_four(model, method, batches)
    assert two_four_report(model)["zeros"] == 0


def test_inputs_that_are_not_finite_are_one_clear_error(root, batches):
    model = load_model(root / "base")
    model.get_input_embeddings().weight.data.fill_(float("nan"))
    with pytest.raises(
        InputError, match=r"layers\.0\.self_attn\.q_proj: its inputs are not finite"
    ):
        prune_two_four(model, "wanda_2_4", batches)


# -- every family ---------------------------------------------------------------------------------


def batches_of(family):
    """A picture alone; two texts of different length, padded."""
    one, short, long = (
        tiny_batch(family, image, seed) for image, seed in ((1, 0), (0, 7), (0, 1e9))
    )
    return [one, pad([short, long], 0, "right")]


@pytest.mark.parametrize("family", [name for name in FAMILIES if "moe" not in name])
def test_wanda_equals_brute_force_for_every_family(family):
    batches = batches_of(family)
    assert not batches[1]["attention_mask"].all()
    whole, model = tiny_model(family).double(), tiny_model(family).double()
    dense = {name: weight.clone() for name, weight in model.named_parameters()}
    expected = oracle_masks(whole, batches)
    prune_two_four(model, "wanda_2_4", batches)
    for index, layer in enumerate(decoder_layers(model)):
        for name, linear in linears(layer):
            assert torch.equal(linear.weight == 0, expected[f"{index}.{name}"]), (index, name)
    pruned = {id(linear.weight) for _, linear in linears(decoder_layers(model))}
    assert len(pruned) == len(expected) == LAYERS * NUM_LINEARS
    for name, weight in model.named_parameters():
        changed = not torch.equal(weight, dense[name])
        assert changed == (id(weight) in pruned), name
    report = two_four_report(model)
    assert report["groups_with_two_zeros"] == report["groups"]


def test_padding_that_counted_would_change_the_masks():
    batches = batches_of("gemma3")
    right, wrong = tiny_model("gemma3").double(), tiny_model("gemma3").double()
    prune_two_four(right, "wanda_2_4", batches)
    for batch in batches:
        batch["attention_mask"] = torch.ones_like(batch["attention_mask"])
    prune_two_four(wrong, "wanda_2_4", batches)
    assert any(
        not torch.equal(a.weight == 0, b.weight == 0)
        for (_, a), (_, b) in zip(
            linears(decoder_layers(right)), linears(decoder_layers(wrong)), strict=True
        )
    )


@pytest.mark.parametrize("method", ["wanda_2_4", "magnitude_2_4"])
def test_experts_are_refused_and_left_alone(method):
    model = tiny_model("qwen3_vl_moe")
    with pytest.raises(InputError, match=r"layers\.1\.mlp\.experts\.\w+ is no Linear weight"):
        prune_two_four(model, method, [tiny_batch("qwen3_vl_moe")])
    assert two_four_report(model)["zeros"] == 0


@pytest.mark.parametrize("family", ["qwen3_vl", "gemma3"])
def test_activations_held_do_not_grow_with_depth(family):
    batches = batches_of(family) * 2
    held = []
    for depth in (3, 6):
        model = tiny_model(family, layers=depth)
        outputs, most = [], 0

        def count(_module, _args, output, outputs=outputs):
            nonlocal most
            outputs.append(weakref.ref(output[0] if isinstance(output, tuple) else output))
            most = max(most, sum(ref() is not None for ref in outputs))

        for layer in decoder_layers(model):
            layer.register_forward_hook(count)
        prune_two_four(model, "wanda_2_4", batches)
        assert len(outputs) >= 2 * depth * len(batches)
        held.append(most)
    assert held[0] == held[1] <= len(batches) + 1


# -- kernels --------------------------------------------------------------------------------------


def test_dense_kernels_say_why():
    model = tiny_model("qwen3_vl")
    reasons = {}
    reasons["dense"] = use_sparse_kernels(model)
    assert not is_two_four(model)
    prune_two_four(model, "magnitude_2_4")
    assert is_two_four(model)
    reasons["cpu"] = use_sparse_kernels(model)
    for off in ("off", False):
        reasons[off] = use_sparse_kernels(model, off)
    assert {key: reason["kernels_reason"] for key, reason in reasons.items()} == {
        "dense": "the weights are not 2:4 sparse",
        "cpu": "there is no CUDA device",
        "off": "ttft.sparse_kernels is off",
        False: "ttft.sparse_kernels is off",
    }
    assert {reason["kernels"] for reason in reasons.values()} == {"dense"}
    assert all(type(linear.weight.data) is torch.Tensor for _, linear in linears(model))


def test_a_refusal_of_torch_is_the_reason():
    # Off a GPU torch refuses every weight; the model stays as it is.
    model = tiny_model("qwen3_vl")
    prune_two_four(model, "magnitude_2_4")
    reason = _failed_trial(model)
    assert reason.startswith("torch refuses layers.5.self_attn.o_proj of shape (32, 32): ")
    assert "CUDA" in reason
    assert "\n" not in reason


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_sparse_kernels_give_the_same_logits():
    model = tiny_model(
        "qwen3_vl", hidden_size=256, intermediate_size=512, num_attention_heads=4,
        num_key_value_heads=4, head_dim=64,
    )  # fmt: skip
    prune_two_four(model, "magnitude_2_4")
    model = model.to("cuda", torch.bfloat16)
    batch = {key: value.cuda() for key, value in tiny_batch("qwen3_vl", False).items()}
    with torch.inference_mode():
        dense = model(**batch).logits.float()
        used = use_sparse_kernels(model)
        if torch.cuda.get_device_capability() < (8, 0):
            assert used["kernels"] == "dense"
            return
        assert used["kernels"] == "semi_structured", used
        sparse = model(**batch).logits.float()
    assert any(type(linear.weight.data) is not torch.Tensor for _, linear in linears(model))
    assert (sparse - dense).abs().max() <= 0.05 * dense.abs().max()
