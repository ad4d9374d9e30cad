"""Every family: its layers are found, watched, dropped, saved and reloaded by stock transformers."""

import json
import re
import subprocess
import sys

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import (
    AutoModelForCausalLM,
    AutoModelForImageTextToText,
    BertConfig,
    LlavaConfig,
)

from interlace.decoder.checkpoint import save_checkpoint, take_probe, verify_checkpoint
from interlace.decoder.layers import (
    DECODERS,
    decoder_layers,
    image_token_id,
    num_deepstack,
    num_layers,
    text_config,
)
from interlace.decoder.load import auto_class, load_model, load_processor
from interlace.decoder.surgery import drop_layers
from interlace.errors import InputError
from interlace.scoring.similarity import WindowRecorder
from tests.boundaries import BoundaryRecorder
from tests.tiny import make_tiny_tokenizer
from tests.tiny_families import (
    FAMILIES,
    LAYERS,
    TEXT_FAMILIES,
    VISION_FAMILIES,
    WITH_PROCESSOR,
    tiny_batch,
    tiny_config,
    tiny_model,
    tiny_processor,
)

DEEPSTACK = ("qwen3_vl", "qwen3_vl_moe")


def logits(model, batch):
    with torch.no_grad():
        return model(**batch, use_cache=False).logits


def kinds(model):
    """What makes one layer different from the next: its window and its MLP."""
    return [
        (getattr(layer.self_attn, "sliding_window", None), type(layer.mlp).__name__)
        for layer in decoder_layers(model)
    ]


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """A checkpoint folder for every family, without a processor."""
    root = tmp_path_factory.mktemp("families")
    for family in FAMILIES:
        tiny_model(family).save_pretrained(root / family)
    return root


def test_every_known_decoder_is_tested():
    assert {text_config(tiny_config(family)).model_type for family in FAMILIES} == DECODERS


@pytest.mark.parametrize("family", FAMILIES)
def test_hooks_see_every_layer(family):
    model, batch = tiny_model(family), tiny_batch(family)
    assert len(decoder_layers(model)) == LAYERS == num_layers(model.config)
    with BoundaryRecorder(model) as record, torch.no_grad():
        last = model.base_model(**batch).last_hidden_state
    visual = batch["input_ids"][0] == (image_token_id(model.config) or -1)
    assert bool(visual.any()) == (family in VISION_FAMILIES)
    for layer in range(LAYERS - 1):
        change = (record.inputs[layer + 1] - record.outputs[layer])[0].abs().amax(1)
        assert not change[~visual].any()
        injected = family in DEEPSTACK and layer < 3
        assert bool(change[visual].any()) == injected
    assert torch.equal(model.get_decoder().norm(record.outputs[-1]), last)
    for before, after in zip(record.inputs, record.outputs, strict=True):
        assert (before - after).abs().max() > 1e-2


@pytest.mark.parametrize("family", FAMILIES)
def test_scores_are_of_what_the_layers_see(family):
    model, batch = tiny_model(family), tiny_batch(family)
    with BoundaryRecorder(model) as record, WindowRecorder(model, 3) as windows, torch.no_grad():
        counts = windows.start(batch)
        model.base_model(**batch, use_cache=False)
        sums = windows.take()[0][0]
    states = [*record.inputs, record.outputs[-1]]
    visual = batch["input_ids"][0] == (image_token_id(model.config) or -1)
    assert counts.tolist() == [[int((~visual).sum()), int(visual.sum())]]
    for (size, start), (text, image) in zip(windows.windows, sums, strict=True):
        cosine = torch.cosine_similarity(states[start][0], states[start + size][0], dim=-1)
        assert abs(float(cosine[~visual].sum() - text)) < 1e-4
        assert abs(float(cosine[visual].sum() - image)) < 1e-4


@pytest.mark.parametrize(
    ("family", "drop"), [*((family, [0, 2, 5]) for family in FAMILIES), ("qwen3_vl", [1])]
)
def test_dropped_layers_reload_and_generate_the_same(family, drop, tmp_path):
    model = tiny_model(family)
    before = kinds(model)
    kept = [index for index in range(LAYERS) if index not in drop]
    layers = [decoder_layers(model)[index] for index in kept]
    drop_layers(model, drop)
    assert list(decoder_layers(model)) == layers
    model.save_pretrained(tmp_path)
    assert num_layers(tmp_path) == num_layers(model.config) == len(kept)
    assert num_deepstack(tmp_path) == (3 if family in DEEPSTACK else 0)

    stock = AutoModelForCausalLM if family in TEXT_FAMILIES else AutoModelForImageTextToText
    again = stock.from_pretrained(tmp_path).eval()
    assert type(again) is type(model)
    assert kinds(again) == kinds(model) == [before[index] for index in kept]
    for with_image in (True, False):
        batch = tiny_batch(family, with_image)
        torch.testing.assert_close(logits(again, batch), logits(model, batch), rtol=0, atol=1e-5)
        tokens = {"max_new_tokens": 4, "min_new_tokens": 4}
        cached = model.generate(**batch, **tokens, use_cache=True)
        assert cached.shape[1] == batch["input_ids"].shape[1] + 4
        assert torch.equal(cached, again.generate(**batch, **tokens, use_cache=False))


@pytest.mark.parametrize("family", FAMILIES)
def test_a_model_without_layers_is_the_model_that_passes_them_by(family):
    drop = [3, 4]  # behind DeepStack, whose positions would move
    whole, model = tiny_model(family), tiny_model(family)
    batch = tiny_batch(family)
    dense = logits(whole, batch)
    for index in drop:
        decoder_layers(whole)[index].register_forward_hook(
            lambda _module, args, kwargs, _output: args[0] if args else kwargs["hidden_states"],
            with_kwargs=True,
        )
    drop_layers(model, drop)
    assert torch.equal(logits(model, batch), logits(whole, batch))
    assert (logits(model, batch) - dense).abs().max() > 1e-2


@pytest.mark.parametrize("family", FAMILIES)
def test_stale_depths_and_missing_weights_are_refused(family, folders, tmp_path):
    config = json.loads((folders / family / "config.json").read_text())
    weights = load_file(folders / family / "model.safetensors")
    inner = config.get("text_config", config)
    save_file(weights, tmp_path / "model.safetensors", {"format": "pt"})
    for depth in (LAYERS - 1, LAYERS + 1):
        inner["num_hidden_layers"] = depth
        if "layer_types" in inner:
            inner["layer_types"] = (inner["layer_types"] * 2)[:depth]
        (tmp_path / "config.json").write_text(json.dumps(config))
        with pytest.raises(InputError, match=r"\A.*stale.*\Z"):  # in one line
            load_model(tmp_path)
    (tmp_path / "config.json").write_text((folders / family / "config.json").read_text())
    name = next(name for name in weights if name.endswith("layers.2.self_attn.o_proj.weight"))
    shape = tuple(weights[name].shape)
    other = weights | {name: torch.zeros(3, 5)}
    save_file(other, tmp_path / "model.safetensors", {"format": "pt"})
    message = (
        rf"layers\.2\.self_attn\.o_proj\.weight has the shape \(3, 5\), not {re.escape(str(shape))}"
    )
    with pytest.raises(InputError, match=message) as raised:
        load_model(tmp_path)
    assert "\n" not in str(raised.value)
    del weights[name]
    save_file(weights, tmp_path / "model.safetensors", {"format": "pt"})
    with pytest.raises(InputError, match=r"newly initialised, first .*layers\.2\.self_attn\.o_pro"):
        load_model(tmp_path)


def test_configs_are_read_without_torch(folders):
    code = (
        "import sys; sys.modules['torch'] = None\n"
        "from pathlib import Path\n"
        "from interlace.decoder.layers import num_deepstack, num_layers\n"
        "for path in sorted(Path(sys.argv[1]).iterdir()):\n"
        "    print(path.name, num_layers(path), num_deepstack(path / 'config.json'))\n"
        "assert 'transformers' not in sys.modules\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, str(folders)], capture_output=True, text=True, check=True
    )
    expected = [f"{f} {LAYERS} {3 if f in DEEPSTACK else 0}" for f in sorted(FAMILIES)]
    assert done.stdout.splitlines() == expected


def test_depths_left_to_the_family_are_its_defaults(tmp_path):
    # As in LLaVA 1.5's own config.json, whose text_config names little more than its type.
    path = tmp_path / "config.json"
    path.write_text(json.dumps({"model_type": "llava", "text_config": {"model_type": "llama"}}))
    assert num_layers(tmp_path) == num_layers(path) == 32
    path.write_text(json.dumps({"model_type": "qwen3_vl", "text_config": {}, "vision_config": {}}))
    assert num_deepstack(tmp_path) == 3
    path.write_text(json.dumps({"model_type": "nothing", "text_config": {}}))
    with pytest.raises(InputError, match=r"config\.json"):
        num_layers(tmp_path)
    path.write_text(json.dumps({"hidden_size": 8}))
    with pytest.raises(InputError, match="no num_hidden_layers"):
        num_layers(tmp_path)


def test_experts_stay_where_their_layers_go():
    model = tiny_model("qwen3_vl_moe")
    sparse = ["Sparse" in name for _, name in kinds(model)]
    assert sparse == [False, True, False, False, False, True]  # every second, but not layer 3
    drop_layers(model, [0, 2])
    config = text_config(model.config)
    assert (config.mlp_only_layers, config.decoder_sparse_step) == ([1, 2], 1)


def test_lists_that_say_something_else_of_layers_are_refused():
    model = tiny_model("llama")
    model.config.layer_scales = [1.0] * LAYERS
    drop_layers(model, [1])
    assert model.config.layer_scales == [1.0] * (LAYERS - 1)
    model.config.cross_layers = [1, 4]
    with pytest.raises(InputError, match="config entry cross_layers has 2 items for 5 layers"):
        drop_layers(model, [1])
    assert len(decoder_layers(model)) == num_layers(model.config) == LAYERS - 1


@pytest.mark.parametrize("family", WITH_PROCESSOR)
def test_checkpoints_are_proven_with_a_picture(family, tmp_path):
    model, processor = tiny_model(family), tiny_processor(family)
    drop_layers(model, [1])
    save_checkpoint(model, processor, tmp_path / "out", {"model": family, "variant": "x"})
    again = load_processor(tmp_path / "out")
    assert type(again) is type(processor)
    probe = take_probe(model, again)
    assert (probe.batch["input_ids"] == image_token_id(model.config)).any()
    assert "pixel_values" in probe.batch
    assert verify_checkpoint(tmp_path / "out", probe) <= 1e-6


@pytest.mark.parametrize("family", ["qwen3_vl", "llava_onevision", "gemma3"])
def test_half_precision_is_proven_too(family, folders, tmp_path):
    model, processor = load_model(folders / family, "bfloat16"), tiny_processor(family)
    save_checkpoint(model, processor, tmp_path / "out", {"model": family, "variant": "x"})
    again = load_model(tmp_path / "out", "auto")
    assert again.dtype == torch.bfloat16
    assert verify_checkpoint(tmp_path / "out", take_probe(model, processor), dtype=again.dtype) == 0


def test_without_a_template_the_probe_is_text(tmp_path):
    model, processor = tiny_model("llava"), tiny_processor("llava")
    processor.save_pretrained(tmp_path)
    (tmp_path / "config.json").write_text(model.config.to_json_string())
    bare = load_processor(tmp_path)
    bare.chat_template = bare.tokenizer.chat_template = None
    probe = take_probe(model, bare)
    assert "pixel_values" not in probe.batch
    assert probe.logits.shape[:2] == probe.batch["input_ids"].shape


def test_a_text_model_says_how_it_loads(tmp_path):
    model, processor = tiny_model("llama"), make_tiny_tokenizer()
    save_checkpoint(model, processor, tmp_path / "out", {"model": "llama", "variant": "x"})
    assert auto_class(model.config) is AutoModelForCausalLM
    card = (tmp_path / "out" / "README.md").read_text()
    assert "AutoModelForCausalLM.from_pretrained" in card
    assert "text-generation" in card
    # no image processor: nothing to bound, no complaint
    assert load_processor(tmp_path / "out", max_pixels=1024) is not None


@pytest.mark.parametrize("family", WITH_PROCESSOR)
def test_pixel_bounds_are_for_image_processors_that_have_them(family, tmp_path):
    tiny_processor(family).save_pretrained(tmp_path)
    (tmp_path / "config.json").write_text(tiny_config(family).to_json_string())
    load_processor(tmp_path)
    if family.startswith("qwen"):
        size = load_processor(tmp_path, max_pixels=4096).image_processor.size
        assert dict(size)["longest_edge"] == 4096
    else:
        with pytest.raises(InputError, match="ImageProcessor has no bounds on pixels; set min_pix"):
            load_processor(tmp_path, max_pixels=4096)


def test_unknown_decoders_are_refused_before_they_are_loaded(tmp_path):
    BertConfig(num_hidden_layers=2).save_pretrained(tmp_path)
    with pytest.raises(
        InputError, match=r"'bert' has an unknown decoder \(bert\); known are gemma3"
    ):
        load_model(tmp_path)
    # A known frame around an unknown decoder is unknown.
    config = LlavaConfig(text_config={"model_type": "gpt2", "n_layer": 2})
    config.save_pretrained(tmp_path)
    with pytest.raises(InputError, match=r"'llava' has an unknown decoder \(gpt2\)"):
        load_model(tmp_path)
