"""A model that reads text only, with a bare tokenizer for a processor, from samples to scores."""

import json

import pytest
import torch

from interlace.data.chat import load_records
from interlace.data.collate import encode
from interlace.decoder.load import load_model, load_processor
from interlace.errors import InputError
from interlace.scoring.shards import score_windows
from interlace.scoring.sleb import run_sleb
from interlace.scoring.store import read_windows
from tests.tiny import CHAT_TEMPLATE, make_tiny_samples, make_tiny_tokenizer
from tests.tiny_families import LAYERS, tiny_model

SETTINGS = {"batch_tokens": 400, "max_length": 256, "min_pixels": None, "max_pixels": None}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("text")
    tiny_model("llama").save_pretrained(folder / "model")
    tokenizer = make_tiny_tokenizer()
    tokenizer.chat_template = CHAT_TEMPLATE
    tokenizer.save_pretrained(folder / "model")
    make_tiny_samples(folder / "samples")
    return folder


def drawn(folder):
    records = load_records(folder / "samples", calibration_only=True)
    texts = [record.id for record in records if not record.images]
    assert 0 < len(texts) < len(records)
    return records, texts


def test_windows_of_a_text_model(folder, tmp_path):
    records, texts = drawn(folder)
    score_windows(folder / "model", folder / "samples", tmp_path, SETTINGS, model_key="m", seed=0)
    windows = read_windows(tmp_path / "windows.parquet")
    assert windows.ids == texts
    out = {entry["id"]: entry["reason"] for entry in windows.info["left_out"]}
    assert out == {name: "dropped_no_vision" for name in records.ids if name not in texts}
    model, tokenizer = load_model(folder / "model"), load_processor(folder / "model")
    place = windows.windows.index((1, 0))
    for row, record in enumerate(record for record in records if not record.images):
        inputs = {k: v for k, v in encode(record, tokenizer).items() if k != "labels"}
        with torch.no_grad():
            states = model(**inputs, output_hidden_states=True).hidden_states
        wanted = torch.cosine_similarity(states[0].double(), states[1].double(), dim=-1)[0]
        assert windows.counts[row].tolist() == [len(wanted), 0]
        assert windows.sums[row, place].sum() == pytest.approx(float(wanted.sum()), abs=1e-4)


def test_sleb_of_a_text_model(folder, tmp_path):
    records, texts = drawn(folder)
    settings = {"samples": len(records), "batch_tokens": 400, "max_length": 256}
    out = tmp_path / "sleb.json"
    run_sleb(folder / "model", folder / "samples", out, settings, model_key="m", ratio=34, seed=0)
    found = json.loads(out.read_text())
    assert found["calibration"]["samples"] == texts
    assert len(found["removals"]) == round(0.34 * LAYERS)


def test_no_template_is_named_as_what_is_wrong(folder, tmp_path):
    tiny_model("llama").save_pretrained(tmp_path / "model")
    make_tiny_tokenizer().save_pretrained(tmp_path / "model")
    with pytest.raises(InputError, match=r"scoring: none of .*chat_template is not set") as refused:
        score_windows(
            tmp_path / "model", folder / "samples", tmp_path, SETTINGS, model_key="m", seed=0
        )
    assert "max_length" not in str(refused.value)
