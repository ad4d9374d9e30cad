"""The shipped base models unpack to checkpoints that stock transformers loads."""

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file
from transformers import AutoModelForImageTextToText, AutoProcessor

from interlace.demo import models
from interlace.demo.models import BASE_MODELS, WEIGHTS, write_base_model
from interlace.errors import InputError


@pytest.mark.parametrize("name", sorted(BASE_MODELS))
def test_unpacks_to_a_plain_checkpoint_that_sees(name, tmp_path):
    write_base_model(name, tmp_path / "model")
    model, info = AutoModelForImageTextToText.from_pretrained(
        tmp_path / "model", output_loading_info=True
    )
    assert not any(info.values())
    assert model.dtype == torch.float32
    assert len(model.model.language_model.layers) == 36
    processor = AutoProcessor.from_pretrained(tmp_path / "model")
    picture = Image.new("RGB", (96, 96), (245, 245, 245))
    picture.paste((40, 170, 60), (39, 39, 57, 57))
    question = {"type": "text", "text": "What color is the square?"}
    content = [{"type": "image", "image": picture}, question]
    inputs = processor.apply_chat_template(
        [{"role": "user", "content": content}],
        tokenize=True,
        add_generation_prompt=True,
        return_dict=True,
        return_tensors="pt",
    )
    assert (inputs.input_ids == model.config.image_token_id).sum() == 9
    said = model.generate(**inputs, do_sample=False, max_new_tokens=5)
    answer = said[0, inputs.input_ids.shape[1] :]
    assert processor.decode(answer, skip_special_tokens=True) == "green"
    card = (tmp_path / "model" / "README.md").read_text()
    assert "stand-in" in card
    assert BASE_MODELS[name].stands_for in card


def test_head_is_untied_in_the_8b_and_tied_in_the_4b():
    keys = {name: set(load_file(WEIGHTS / name / "model.safetensors")) for name in BASE_MODELS}
    assert "lm_head.weight" in keys["standin_8b"]
    assert "lm_head.weight" not in keys["standin_4b"]


def test_weights_are_small_enough_to_ship():
    assert sum(p.stat().st_size for p in WEIGHTS.rglob("*") if p.is_file()) < 10_000_000


def test_mistakes_are_named(tmp_path, monkeypatch):
    with pytest.raises(InputError, match="standin_4b, standin_8b"):
        write_base_model("qwen", tmp_path / "x")
    monkeypatch.setattr(models, "WEIGHTS", tmp_path / "nowhere")
    with pytest.raises(InputError, match="no weights"):
        write_base_model("standin_4b", tmp_path / "x")
    assert not (tmp_path / "x").exists()
