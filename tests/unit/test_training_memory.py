import json
import weakref
from dataclasses import replace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from transformers import Qwen3VLConfig, Qwen3VLForConditionalGeneration

from interlace.errors import InputError
from interlace.training.freeze import apply_plan
from interlace.training.memory import (
    ALWAYS,
    HOST,
    PASS,
    Load,
    MemoryEstimate,
    Part,
    available_bytes,
    choose_sharding,
    describe,
    estimate,
    estimator,
)
from interlace.training.recipe import RECIPES
from interlace.training.setup import checkpoint_layers
from interlace.training.shape import model_shape
from tests.tiny import make_tiny_checkpoint
from tests.tiny_families import FAMILIES, tiny_model

PLAIN = replace(RECIPES["fast"], sharding="none", checkpointing="none", head="chunked")
ZERO3 = replace(PLAIN, sharding="zero3")
OFFLOAD = replace(PLAIN, sharding="zero3_offload")
PACKED = Load(1, 8192)
# 25 %: nine layers dropped, nine tuned.
PLAN = {"drop": range(4, 31, 3), "tune": range(5, 32, 3)}


def qwen3_vl(hidden, mlp, tied, vision, **text):
    """Return a config as the hub's of Qwen3-VL: 36 layers, 32 heads, 8 of them for keys."""
    text = {
        "vocab_size": 151936,
        "hidden_size": hidden,
        "intermediate_size": mlp,
        "num_hidden_layers": 36,
        "num_attention_heads": 32,
        "num_key_value_heads": 8,
        "head_dim": 128,
        "tie_word_embeddings": tied,
        "rope_parameters": {
            "rope_type": "default",
            "rope_theta": 5e6,
            "mrope_section": [24, 20, 20],
            "mrope_interleaved": True,
        },
        **text,
    }
    vision = {**vision, "out_hidden_size": hidden}
    return Qwen3VLConfig(text_config=text, vision_config=vision, tie_word_embeddings=tied)


def vision(depth, hidden, mlp, deepstack):
    names = ("depth", "hidden_size", "intermediate_size", "deepstack_visual_indexes")
    return {**dict(zip(names, (depth, hidden, mlp, deepstack), strict=True)), "num_heads": 16}


@pytest.fixture(scope="module")
def shape_8b():
    return model_shape(qwen3_vl(4096, 12288, False, vision(27, 1152, 4304, [8, 16, 24])))


@pytest.fixture(scope="module")
def shape_4b():
    return model_shape(qwen3_vl(2560, 9728, True, vision(24, 1024, 4096, [5, 11, 17])))


def test_parameters_of_the_real_models(shape_8b, shape_4b):
    assert shape_8b.total == 8_767_123_696
    assert set(shape_8b.layers) == {192_946_432}
    assert shape_8b.head == 151936 * 4096
    assert shape_4b.total == 4_437_815_808
    assert shape_4b.head == 0  # tied: counted once, with the embeddings
    for shape in (shape_8b, shape_4b):
        assert len(shape.layers) == 36
        assert (shape.query, shape.key, shape.layer_norms) == (4096, 1024, 2)
        assert shape.head_norms
        assert shape.num_deepstack == 3


def of(need, name):
    """Return the bytes of the parts of that name; 0 if there is none."""
    return sum(part.bytes for part in need.parts if part.name == name)


def test_the_8b_under_zero3_as_known(shape_8b):
    # 1.74 B trained: 14 GB of 16-bit weights, 21 GB of float32 masters and AdamW's two states.
    need = estimate(shape_8b, PACKED, ZERO3, **PLAN)
    trained = 9 * 192_946_432
    assert trained == pytest.approx(1.74e9, rel=0.01)
    masters = of(need, "trained weights") - 2 * trained
    assert of(need, "frozen weights") + 2 * trained == pytest.approx(14.06e9, rel=0.01)
    assert masters + of(need, "AdamW states") == 12 * trained == pytest.approx(20.8e9, rel=0.01)
    assert of(need, "gradients") == 2 * trained


def test_the_8b_plain_on_one_device(shape_8b):
    need = estimate(shape_8b, PACKED, PLAIN, **PLAN)
    trained = 9 * 192_946_432
    kept = shape_8b.total - trained
    assert of(need, "frozen weights") == 2 * (kept - trained)
    assert of(need, "trained weights") == of(need, "gradients") == 4 * trained
    assert of(need, "AdamW states") == 8 * trained
    assert of(need, "16-bit copies of trained weights") == 2 * trained
    in_float32 = estimate(shape_8b, PACKED, PLAIN, **PLAN, precision="float32")
    assert of(in_float32, "16-bit copies of trained weights") == 0
    assert of(in_float32, "frozen weights") == 4 * (kept - trained)


def test_the_released_reading_trains_the_head_too(shape_8b):
    less = estimate(shape_8b, PACKED, PLAIN, **PLAN)
    more = estimate(shape_8b, PACKED, PLAIN, **PLAN, head=True)
    assert of(more, "AdamW states") - of(less, "AdamW states") == 8 * shape_8b.head
    assert of(less, "frozen weights") - of(more, "frozen weights") == 2 * shape_8b.head


def test_ranks_share_weights_and_states(shape_8b):
    one = estimate(shape_8b, PACKED, ZERO3, **PLAN)
    four = estimate(shape_8b, PACKED, ZERO3, **PLAN, world=4)
    for part in ("frozen weights", "trained weights", "gradients", "AdamW states"):
        assert of(four, part) == pytest.approx(of(one, part) / 4, abs=4)
    assert of(four, "activations") == of(one, "activations")  # each has micro-batches of its own
    assert of(four, "gathered weights and buckets") > of(one, "gathered weights and buckets")


def test_offload_moves_what_stays_to_main_memory(shape_8b):
    need = estimate(shape_8b, PACKED, OFFLOAD, **PLAN)
    assert need.during(ALWAYS) == 0
    assert need.host > estimate(shape_8b, PACKED, ZERO3, **PLAN).during(ALWAYS)
    assert need.device < estimate(shape_8b, PACKED, ZERO3, **PLAN).device - 30e9


def test_a_checkpoint_is_loaded_again_beside_what_zero3_keeps(shape_8b):
    whole = 2 * (shape_8b.total - 9 * 192_946_432)
    offloaded, sharded = (estimate(shape_8b, Load(1, 64), way, **PLAN) for way in (OFFLOAD, ZERO3))
    assert offloaded.device == whole
    assert sharded.device >= sharded.during(ALWAYS) + whole


def test_only_whole_logits_grow_with_the_vocabulary(shape_8b):
    def logits(head, load, **changes):
        recipe = replace(PLAIN, head=head)
        return of(estimate(replace(shape_8b, **changes), load, recipe, **PLAN), "logits")

    twice = 2 * shape_8b.vocab
    assert logits("full", PACKED) == 8192 * shape_8b.vocab * 15
    assert logits("full", PACKED, vocab=twice) == 2 * logits("full", PACKED)
    assert logits("chunked", PACKED, vocab=twice) == logits("chunked", PACKED) < 1.2e9


def test_distillation_costs_the_layers_that_differ(shape_8b):
    plain = estimate(shape_8b, PACKED, PLAIN, **PLAN)
    taught = estimate(shape_8b, PACKED, PLAIN, **PLAN, distilled="hidden")
    assert of(taught, "teacher's own layers") == 2 * 18 * shape_8b.layers[0]
    assert of(taught, "teacher's states") > 0 == of(plain, "teacher's states")
    of_logits = estimate(shape_8b, PACKED, PLAIN, **PLAN, distilled="logits")
    assert of(of_logits, "logits") == 2 * of(plain, "logits")


def test_stored_features_spare_the_tower(shape_8b):
    live = estimate(shape_8b, PACKED, PLAIN, **PLAN)
    cached = estimate(shape_8b, PACKED, replace(PLAIN, vision="cached"), **PLAN)
    assert of(live, "vision tower") > 0 == of(cached, "vision tower")
    assert of(live, "vision features") == of(cached, "vision features") == 8192 * 4096 * 2 * 4
    text = estimate(replace(shape_8b, vision=0), PACKED, PLAIN, **PLAN)
    assert of(text, "vision features") == of(text, "vision tower") == 0


class Held:
    def __init__(self, tensor):
        self.tensor = tensor


def bytes_saved(model, run):
    """Return the bytes of the storages, parameters aside, that autograd holds after `run`."""
    own = {weight.untyped_storage().data_ptr() for weight in model.parameters()}
    held = []

    def pack(tensor):
        box = Held(tensor)
        held.append(weakref.ref(box))
        return box

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda box: box.tensor):
        result = run()
    storages = {}
    for box in (reference() for reference in held):
        if box is not None and box.tensor.untyped_storage().data_ptr() not in own:
            storages[box.tensor.untyped_storage().data_ptr()] = (
                box.tensor.untyped_storage().nbytes()
            )
    del result
    return sum(storages.values())


def prepared(model, tune, recipe, precision):
    model.requires_grad_(False)
    if precision != "float32":
        model.to(torch.bfloat16)
    apply_plan(model, [], tune)
    if precision != "float32" and recipe.sharding == "none":
        for weight in model.parameters():
            if weight.requires_grad:
                weight.data = weight.data.float()
    if recipe.checkpointing != "none":
        checkpoint_layers(model)
    if recipe.graph == "all":
        model.enable_input_require_grads()
    return model.train()


def measured_and_estimated(model, recipe, precision="float32", tune=(6, 8, 10), vocab=500):
    """Return the bytes that a forward pass of 2 x 192 tokens keeps, and the estimate of them.

    With `recipe.attention` sdpa one of the rows is padded, so that there is a mask.
    """
    shape = model_shape(model)
    prepared(model, tune, recipe, precision)
    ids = torch.randint(10, vocab, (2, 192), generator=torch.Generator().manual_seed(0))
    seen = torch.ones_like(ids)
    if recipe.attention == "sdpa":
        seen[0, 150:] = 0
    mixed = precision != "float32" and recipe.sharding == "none"

    def run():
        with torch.autocast("cpu", torch.bfloat16, enabled=mixed):
            hidden = model.model(input_ids=ids, attention_mask=seen, use_cache=False)
            return hidden.last_hidden_state.float().sum()

    need = estimate(shape, Load(2, 192), recipe, tune=tune, precision=precision)
    expected = of(need, "activations")
    if recipe.checkpointing == "none":  # else they are made again in the backward pass
        expected += of(need, "16-bit copies of trained weights")
    return bytes_saved(model, run), expected


def wide_model(layers=12):
    config = qwen3_vl(
        256, 768, False, {**vision(1, 64, 128, [0]), "num_heads": 4},
        vocab_size=512, num_hidden_layers=layers, num_attention_heads=4, num_key_value_heads=2,
        head_dim=64,
    )  # fmt: skip
    config.text_config.rope_parameters["mrope_section"] = [16, 8, 8]
    torch.manual_seed(0)
    return Qwen3VLForConditionalGeneration(config)


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
@pytest.mark.parametrize("sharding", ["none", "zero3"])
@pytest.mark.parametrize("checkpointing", ["none", "all"])
@pytest.mark.parametrize("graph", ["tuned", "all"])
def test_the_activations_are_what_autograd_saves(graph, checkpointing, sharding, precision):
    recipe = replace(PLAIN, graph=graph, checkpointing=checkpointing, sharding=sharding)
    measured, expected = measured_and_estimated(wide_model(), recipe, precision)
    assert expected == pytest.approx(measured, rel=0.15)


@pytest.mark.parametrize("checkpointing", ["none", "tuned"])
def test_the_activations_with_a_mask(checkpointing):
    recipe = replace(PLAIN, attention="sdpa", checkpointing=checkpointing)
    measured, expected = measured_and_estimated(wide_model(), recipe)
    assert expected == pytest.approx(measured, rel=0.15)


def test_another_graph_is_another_estimate():
    # The control of the test above: its tolerance can tell these apart.
    measured, expected = measured_and_estimated(wide_model(), replace(PLAIN, graph="all"))
    _, of_less = measured_and_estimated(wide_model(), PLAIN)
    assert of_less < 0.7 * measured < expected


@pytest.mark.parametrize("family", FAMILIES)
def test_activations_of_other_families(family):
    # Without its window, which needs a mask where the others have none.
    text = {"sliding_window": None} if family == "mistral" else {}
    model = tiny_model(family, 6, **text)
    shape = model_shape(model)
    assert shape.total == sum(weight.numel() for weight in model.parameters())
    assert shape == model_shape(model.config)
    measured, expected = measured_and_estimated(model, PLAIN, tune=(2, 4), vocab=60)
    assert expected == pytest.approx(measured, rel=0.3)


def test_a_checkpoint_folder_and_its_mistakes(tmp_path):
    folder = make_tiny_checkpoint(tmp_path / "base")
    shape = model_shape(folder)
    assert shape.head == 0 < shape.vision
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "model_type": "no_such"}))
    with pytest.raises(InputError, match=r"config\.json: "):
        model_shape(folder)
    with pytest.raises(InputError, match="absent"):
        model_shape(tmp_path / "absent")


def needs(device, host=0):
    return MemoryEstimate((Part("all", device, ALWAYS), Part("states", host, HOST)))


TABLE = {
    ("none", "none"): needs(100),
    ("none", "tuned"): needs(60),
    ("none", "all"): needs(55),
    ("zero3", "none"): needs(50),
    ("zero3", "tuned"): needs(30),
    ("zero3_offload", "none"): needs(20, host=40),
    ("zero3_offload", "tuned"): needs(10, host=40),
}


def fits(choice):
    return " fit in " in choice.why and "does not" not in choice.why


def chosen(available, world=1, host=1000, **levers):
    return choose_sharding(lambda *way: TABLE[way], available, world, host_available=host, **levers)


@pytest.mark.parametrize(
    ("available", "world", "way"),
    [
        (112, 1, ("none", "none")),
        (111, 1, ("none", "tuned")),  # 100 is more than 90 % of it
        (66, 1, ("zero3_offload", "none")),
        (22, 1, ("zero3_offload", "tuned")),
        (200, 2, ("zero3", "none")),
        (55, 2, ("zero3", "tuned")),
        (33, 2, ("zero3_offload", "none")),
        (12, 2, ("zero3_offload", "tuned")),
    ],
)
def test_the_first_way_that_fits_is_taken(available, world, way):
    choice = chosen(available, world)
    assert choice[:2] == way
    assert fits(choice)


def test_without_room_the_least_is_taken_with_a_warning_in_numbers():
    choice = chosen(5)
    assert choice[:2] == ("zero3_offload", "tuned")
    assert "does not fit in" in choice.why
    assert chosen(5, host=None)[:2] == ("none", "tuned")  # a CPU has no memory beside it
    short = chosen(50, host=30)
    assert "needs 0.00 GB of main memory" in short.why


def test_what_is_set_stays():
    assert chosen(5, sharding="none", checkpointing="none")[:2] == ("none", "none")
    assert chosen(10**6, sharding="zero3")[:2] == ("zero3", "none")
    assert chosen(70, checkpointing="all", sharding="none")[:2] == ("none", "all")


@given(st.integers(1, 200), st.integers(0, 50), st.sampled_from([1, 2]))
def test_more_memory_never_asks_for_more_thrift(available, more, world):
    order = [("none", "none"), ("none", "tuned"), ("zero3", "none"), ("zero3", "tuned")]
    order += [("zero3_offload", "none"), ("zero3_offload", "tuned")]
    little, much = chosen(available, world), chosen(available + more, world)
    assert order.index(much[:2]) <= order.index(little[:2])
    assert fits(little) == (little.estimate.device <= int(0.9 * available))


def test_the_real_8b_on_usual_devices(shape_8b):
    def choice(gb, world=1):
        facts = {**PLAN, "world": world}
        ask = estimator(shape_8b, PACKED, RECIPES["fast"], **facts)
        return choose_sharding(ask, int(gb * 1e9), world, host_available=int(200e9))[:2]

    assert choice(141) == ("none", "none")
    assert choice(80) == ("none", "tuned")
    assert choice(40) == ("zero3_offload", "tuned")
    assert choice(40, world=4) == ("zero3", "tuned")


def test_adamw_in_one_kernel_needs_no_copies(shape_8b):
    few = Load(1, 64)
    apart, fused = (estimate(shape_8b, few, PLAIN, **PLAN, fused=fused) for fused in (False, True))
    assert apart.device - fused.device > 3e9


def test_the_table_has_a_line_a_part(shape_8b):
    need = estimate(shape_8b, PACKED, PLAIN, **PLAN)
    lines = describe(need).splitlines()
    assert len(lines) == 2 + sum(part.bytes > 0 for part in need.parts)
    assert any("AdamW states" in line and "13.9 GB" in line for line in lines)
    assert f"{need.device / 1e9:.1f} GB" in lines[-1]
    assert need.device >= need.during(ALWAYS) + need.during(PASS)


def test_what_is_available_is_bounded_by_what_the_job_asked_for():
    device, host = available_bytes(2, limit_mb=100)
    if host is None:
        device, host = 0, device
    assert host == 50_000_000
