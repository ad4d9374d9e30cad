import json
import shutil

import numpy as np
import pytest
import torch
from transformers import (
    AutoModelForImageTextToText,
    BertConfig,
    BertModel,
    LlamaConfig,
    LlamaForCausalLM,
    Qwen2_5_VLConfig,
    Qwen2_5_VLForConditionalGeneration,
)

from interlace.decoder.checkpoint import save_checkpoint, take_probe, verify_checkpoint
from interlace.decoder.layers import (
    BoundaryRecorder,
    decoder_layers,
    num_deepstack,
    num_layers,
)
from interlace.decoder.load import load_model, load_processor
from interlace.decoder.surgery import drop_layers
from interlace.errors import InputError
from tests.tiny import make_tiny_checkpoint, tiny_image


@pytest.fixture(scope="module", params=[True, False], ids=["tied", "untied"])
def base(request, tmp_path_factory):
    return make_tiny_checkpoint(tmp_path_factory.mktemp("tiny") / "base", tied=request.param)


@pytest.fixture
def copy(base, tmp_path):
    return shutil.copytree(base, tmp_path / "copy")


def batch_of(processor, text="What is left?", with_image=True, seed=0):
    content = [{"type": "text", "text": text}]
    if with_image:
        image = tiny_image(np.random.default_rng(seed))
        content = [{"type": "image", "image": image}, *content]
    return processor.apply_chat_template(
        [{"role": "user", "content": content}],
        add_generation_prompt=True,
        tokenize=True,
        return_dict=True,
        return_tensors="pt",
    )


def test_boundaries_are_what_the_layers_see(base):
    model, processor = load_model(base), load_processor(base)
    batch = batch_of(processor)
    visual = batch["input_ids"][0] == model.config.image_token_id
    with BoundaryRecorder(model) as record, torch.no_grad():
        last = model.model(**batch).last_hidden_state
    assert len(record.inputs) == len(record.outputs) == 6
    for layer in range(5):
        change = (record.inputs[layer + 1] - record.outputs[layer])[0].abs().amax(1)
        assert not change[~visual].any()
        assert bool(change[visual].all()) == (layer < 3)  # DeepStack after positions 0, 1, 2
    norm = model.model.language_model.norm
    assert torch.equal(norm(record.outputs[5]), last)
    before = record.inputs[0]
    with torch.no_grad():
        model.model(**batch_of(processor, seed=1))
    assert record.inputs[0] is before  # the hooks are gone


@pytest.mark.parametrize("drop", [[1], [0, 5], [1, 2, 4]])
def test_dropped_layers_reload_and_generate_the_same(base, tmp_path, drop):
    model, processor = load_model(base), load_processor(base)
    kept = [layer for index, layer in enumerate(decoder_layers(model)) if index not in drop]
    drop_layers(model, drop)
    assert list(decoder_layers(model)) == kept
    save_checkpoint(model, processor, tmp_path / "out", {"model": "tiny", "variant": "x"})
    assert num_layers(tmp_path / "out") == num_layers(model.config) == 6 - len(drop)

    again = AutoModelForImageTextToText.from_pretrained(tmp_path / "out").eval()
    for with_image in (True, False):
        batch = batch_of(processor, with_image=with_image)
        with torch.no_grad():
            assert torch.equal(again(**batch).logits, model(**batch).logits)
        cached = again.generate(**batch, max_new_tokens=6, use_cache=True)
        assert torch.equal(cached, again.generate(**batch, max_new_tokens=6, use_cache=False))


def test_dropping_changes_the_logits(base):
    model, processor = load_model(base), load_processor(base)
    dense = take_probe(model, processor).logits
    drop_layers(model, [4])
    assert (take_probe(model, processor).logits - dense).abs().max() > 1e-2


@pytest.mark.parametrize("drop", [[6], [-1], [2, 2], list(range(6))])
def test_impossible_drops_are_refused(base, drop):
    model = load_model(base)
    with pytest.raises(InputError):
        drop_layers(model, drop)
    assert len(decoder_layers(model)) == 6


def test_a_checkpoint_carries_its_record(base, tmp_path):
    model, processor = load_model(base), load_processor(base)
    plan = {"method": "random", "ratio": 25, "num_layers": 6, "drop": [1], "tune": [4]}
    drop_layers(model, [1])
    info = {"model": "tiny", "variant": "random-25", "plan": plan, "training": None}
    save_checkpoint(model, processor, tmp_path / "out", info, files={"notes.txt": "hello"})
    record = json.loads((tmp_path / "out" / "interlace.json").read_text())
    assert record["plan"] == plan
    assert record["num_layers"] == 5
    assert len(record["digest"]) == 16
    card = (tmp_path / "out" / "README.md").read_text()
    assert "random-25" in card
    assert record["digest"] in card
    assert (tmp_path / "out" / "notes.txt").read_text() == "hello"
    assert [p.name for p in tmp_path.iterdir()] == ["out"]


@pytest.mark.parametrize("depth", [5, 7])
def test_a_stale_depth_is_refused(copy, depth):
    config = json.loads((copy / "config.json").read_text())
    config["text_config"]["num_hidden_layers"] = depth
    (copy / "config.json").write_text(json.dumps(config))
    with pytest.raises(InputError, match="stale") as caught:
        load_model(copy)
    assert "\n" not in str(caught.value)


def test_a_missing_weight_is_refused(copy):
    from safetensors.torch import load_file, save_file

    weights = load_file(copy / "model.safetensors")
    name = "model.language_model.layers.3.mlp.up_proj.weight"
    del weights[name]
    save_file(weights, copy / "model.safetensors", {"format": "pt"})
    with pytest.raises(InputError, match=name.replace(".", r"\.")):
        load_model(copy)


def test_torn_or_absent_checkpoints_are_refused(copy, tmp_path):
    whole = (copy / "model.safetensors").read_bytes()
    (copy / "model.safetensors").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(InputError, match="weights cannot be read"):
        load_model(copy)
    with pytest.raises(InputError, match=r"config\.json is missing"):
        load_model(tmp_path / "nowhere")
    with pytest.raises(InputError, match="choose one of auto, float32"):
        load_model(copy, dtype="fp8")


def test_verification_notices_other_weights(base, tmp_path):
    model, processor = load_model(base), load_processor(base)
    save_checkpoint(model, processor, tmp_path / "out", {"model": "tiny", "variant": "dense"})
    probe = take_probe(model, processor)
    assert verify_checkpoint(tmp_path / "out", probe) <= 1e-6
    with torch.no_grad():
        decoder_layers(model)[2].mlp.down_proj.weight.mul_(1.01)
    with pytest.raises(RuntimeError, match="differ"):
        verify_checkpoint(tmp_path / "out", take_probe(model, processor))


def test_a_failed_save_leaves_nothing_behind_its_name(base, tmp_path):
    model, processor = load_model(base), load_processor(base)
    probe = take_probe(model, processor)
    probe.logits += 1
    with pytest.raises(RuntimeError):
        save_checkpoint(model, processor, tmp_path / "out", {}, probe=probe)
    assert not (tmp_path / "out").exists()


def test_pixel_bounds_reach_the_images(base):
    batch = batch_of(load_processor(base, max_pixels=1024))
    assert batch["image_grid_thw"].prod() == 4  # one visual token of 2 x 2 patches
    with pytest.raises(InputError, match="above max_pixels"):
        load_processor(base, min_pixels=4096, max_pixels=1024)


def test_deepstack_positions_from_config(base):
    assert num_deepstack(base) == num_deepstack(load_model(base).config) == 3


def test_text_only_llama_is_found_and_dropped(tmp_path):
    sizes = {"vocab_size": 64, "hidden_size": 16, "intermediate_size": 32}
    config = LlamaConfig(**sizes, num_hidden_layers=4, num_attention_heads=2)
    model = LlamaForCausalLM(config).eval()
    drop_layers(model, [1])
    model.save_pretrained(tmp_path)
    again = load_model(tmp_path)
    tokens = {"input_ids": torch.arange(8)[None]}
    with torch.no_grad():
        assert torch.equal(again(**tokens).logits, model(**tokens).logits)


def test_per_layer_lists_of_qwen2_5_vl_are_sliced(tmp_path):
    sizes = {"hidden_size": 16, "intermediate_size": 32, "num_attention_heads": 2}
    config = Qwen2_5_VLConfig(
        text_config={
            **sizes,
            "vocab_size": 64,
            "num_hidden_layers": 4,
            "num_key_value_heads": 1,
            "use_sliding_window": True,
            "sliding_window": 4,
            "max_window_layers": 2,
            "rope_parameters": {"rope_type": "default", "mrope_section": [2, 1, 1]},
        },
        vision_config={"hidden_size": 16, "intermediate_size": 32, "depth": 2, "num_heads": 2}
        | {"out_hidden_size": 16, "fullatt_block_indexes": [1]},
        vision_start_token_id=1,
        vision_end_token_id=2,
        image_token_id=3,
        video_token_id=4,
    )
    model = Qwen2_5_VLForConditionalGeneration(config).eval()
    before = list(config.text_config.layer_types)
    assert len(set(before)) == 2
    drop_layers(model, [0])
    assert model.config.text_config.layer_types == before[1:]
    model.save_pretrained(tmp_path)
    again = load_model(tmp_path)
    tokens = {"input_ids": torch.arange(8, 20)[None]}
    with torch.no_grad():
        assert torch.equal(again(**tokens).logits, model(**tokens).logits)


def test_unknown_families_are_named():
    config = BertConfig(
        hidden_size=8, num_hidden_layers=1, num_attention_heads=1, intermediate_size=8
    )
    with pytest.raises(InputError, match="bert"):
        decoder_layers(BertModel(config))
