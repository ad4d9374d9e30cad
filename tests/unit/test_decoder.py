import json
import shutil

import numpy as np
import pytest
import torch
from transformers import (
    AutoModelForImageTextToText,
)

from interlace.decoder.checkpoint import save_checkpoint, take_probe, verify_checkpoint
from interlace.decoder.layers import decoder_layers, num_layers
from interlace.decoder.load import load_model, load_processor
from interlace.decoder.surgery import drop_layers
from interlace.errors import InputError
from tests.tiny import make_tiny_checkpoint, tiny_image


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    return make_tiny_checkpoint(tmp_path_factory.mktemp("tiny") / "base")


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


@pytest.mark.parametrize("tied", [True, False], ids=["tied", "untied"])
def test_dropped_layers_reload_and_generate_the_same(tmp_path, tied):
    base, drop = make_tiny_checkpoint(tmp_path / "base", tied=tied), [1, 2, 4]
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
        tokens = {"max_new_tokens": 4, "min_new_tokens": 4}
        cached = again.generate(**batch, **tokens, use_cache=True)
        assert torch.equal(cached, again.generate(**batch, **tokens, use_cache=False))


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


def test_torn_or_absent_checkpoints_are_refused(base, tmp_path):
    copy = shutil.copytree(base, tmp_path / "copy")
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
