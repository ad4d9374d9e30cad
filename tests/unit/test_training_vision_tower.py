"""A model takes features from a store for pixels: the same tokens, and the same logits."""

import pickle

import pytest
import torch
from torch.utils.data import DataLoader

from interlace.data.chat import load_records
from interlace.data.collate import encode, pad
from interlace.decoder.load import load_model, load_processor
from interlace.errors import InputError
from interlace.training.freeze import apply_plan
from interlace.training.vision_cache import cache_vision
from interlace.training.vision_store import VisionStore
from interlace.training.vision_tower import (
    accept_features,
    vision_tower,
    why_not,
    without_pixels,
)
from tests.tiny import make_tiny_samples
from tests.tiny_families import FAMILIES, tiny_config, tiny_model, tiny_processor
from tests.unit.vision_stores import (
    KEYS,
    SETTINGS,
    make_store,
    opened,
    small_chunks,
    stored_samples,
)


@pytest.fixture(scope="module", autouse=True)
def small():
    with small_chunks():
        yield


@pytest.fixture(scope="module")
def given(tmp_path_factory):
    return make_store(tmp_path_factory.mktemp("vision"))


@pytest.fixture(scope="module")
def model(given):
    return load_model(given / "base")


@pytest.fixture(scope="module")
def pairs(given):
    """Every sample encoded as ever, and from the store."""
    processor, store = load_processor(given / "base"), opened(given)
    light, stored = without_pixels(processor), stored_samples(given / "samples", store)
    return [
        (encode(record, processor), store.add_features(record.id, encode(other, light)))
        for record, other in zip(load_records(given / "samples"), stored, strict=True)
    ]


def logits(model, samples):
    batch = pad(samples, 0)
    del batch["labels"]
    with torch.no_grad():
        return model(**batch).logits


def test_a_sample_from_the_store_is_the_live_one_but_for_its_pixels(pairs):
    kinds = set()
    for live, stored in pairs:
        assert live.keys() == stored.keys()
        for key in live.keys() - {"pixel_values"}:
            assert torch.equal(live[key], stored[key]), key
        images = len(live.get("image_grid_thw", ()))
        kinds.add(images)
        if images:
            tokens = int(live["image_grid_thw"].prod(1).sum()) // 4
            assert stored["pixel_values"].shape == (tokens, 4, 32)
    assert kinds == {0, 1, 2}


def test_a_padded_batch_of_images_and_text_has_the_same_logits(model, pairs):
    live = logits(model, [live for live, _ in pairs])
    accept_features(model)
    assert torch.equal(logits(model, [stored for _, stored in pairs]), live)
    assert torch.equal(logits(model, [live for live, _ in pairs]), live), "pixels go on as ever"


def test_a_packed_row_has_the_same_logits(model, pairs):
    accept_features(model)

    def row(samples):
        parts = [{k: v for k, v in s.items() if k != "attention_mask"} for s in samples]
        keys = {key for part in parts for key in part} - {"labels"}
        joined = {
            key: torch.cat(
                [part[key] for part in parts if key in part],
                dim=1 if key in ("input_ids", "mm_token_type_ids") else 0,
            )
            for key in keys
        }
        with torch.no_grad():
            return model(**joined).logits

    live, stored = zip(*pairs[:9], strict=True)
    assert torch.equal(row(live), row(stored))


def test_features_of_another_sample_change_the_logits(given, model, pairs):
    accept_features(model)
    live, stored = next(pair for pair in pairs if "pixel_values" in pair[0])
    wrong = {**stored, "pixel_values": stored["pixel_values"].flip(0) + 1}
    assert not torch.equal(logits(model, [wrong]), logits(model, [live]))
    swapped = {**stored, "pixel_values": stored["pixel_values"].flip(1)}  # DeepStack as pooled
    assert not torch.equal(logits(model, [swapped]), logits(model, [live]))


def test_the_tower_is_left_out_and_gradients_are_the_live_ones(given, pairs):
    live, stored = ([dict(sample) for sample in side] for side in zip(*pairs[:12], strict=True))
    model = load_model(given / "base")
    apply_plan(model, [1], [3])

    def gradients(samples):
        model.zero_grad()
        model(**pad(samples, 0)).loss.backward()
        return [weight.grad for weight in model.parameters() if weight.requires_grad]

    expected = gradients(live)
    accept_features(model)
    for module in vision_tower(model).modules():
        for weight in module.parameters(recurse=False):
            weight.data.fill_(float("nan"))
    found = gradients(stored)
    assert len(found) == 11
    assert all(torch.equal(a, b) for a, b in zip(found, expected, strict=True))


@pytest.mark.parametrize("family", ["qwen3_vl_moe", "qwen2_5_vl", "qwen2_vl"])
def test_other_families_of_qwen(tmp_path, family):
    tiny_model(family).save_pretrained(tmp_path / "base")
    tiny_processor(family).save_pretrained(tmp_path / "base")
    make_tiny_samples(tmp_path / "samples", {"a": "two_images", "b": "text"}, rows=2)
    cache_vision(tmp_path / "base", tmp_path / "samples", tmp_path / "vision", SETTINGS, **KEYS)
    store, processor = opened(tmp_path), load_processor(tmp_path / "base")
    model = load_model(tmp_path / "base")
    records = list(load_records(tmp_path / "samples"))
    live = [encode(record, processor) for record in records]
    before = logits(model, live)
    accept_features(model)
    stored = [
        store.add_features(record.id, sample) for record, sample in zip(records, live, strict=True)
    ]
    assert any(sample["pixel_values"].dim() == 3 for sample in stored if "pixel_values" in sample)
    torch.testing.assert_close(logits(model, stored), before, rtol=1e-5, atol=1e-5)


def test_which_families_can_be_stored(tmp_path, capsys):
    can = {family for family in FAMILIES if why_not(tiny_config(family)) is None}
    assert can == {"qwen3_vl", "qwen3_vl_moe", "qwen2_5_vl", "qwen2_vl"}
    tiny_model("llama").save_pretrained(tmp_path / "base")
    cache_vision(tmp_path / "base", tmp_path / "none", tmp_path / "vision", SETTINGS, **KEYS)
    assert "llama" in capsys.readouterr().err
    with pytest.raises(InputError, match=r"this is llama; set finetune\.levers\.vision to live"):
        VisionStore(tmp_path / "vision")


class Stored(torch.utils.data.Dataset):
    """What a trainer's data set and collator do, in a worker."""

    def __init__(self, samples, store, processor):
        self.samples, self.store, self.processor = samples, store, processor

    def __len__(self):
        return len(self.samples)

    def __getitem__(self, index):
        record = self.samples[index]
        return self.store.add_features(record.id, encode(record, self.processor))


def test_workers_read_the_store(given, pairs):
    store, processor = opened(given), load_processor(given / "base")
    store.features(load_records(given / "samples").ids[0])  # open before workers are forked
    dataset = Stored(stored_samples(given / "samples", store), store, without_pixels(processor))
    again = pickle.loads(pickle.dumps(dataset))
    for index in (0, len(pairs) - 1):
        assert torch.equal(again[index]["input_ids"], pairs[index][0]["input_ids"])
    loader = DataLoader(dataset, batch_size=4, num_workers=2, collate_fn=_pad, shuffle=False)
    read = [batch["pixel_values"] for batch in loader if "pixel_values" in batch]
    expected = [stored["pixel_values"] for _, stored in pairs if "pixel_values" in stored]
    assert torch.equal(torch.cat(read), torch.cat(expected))


def _pad(samples):
    return pad(samples, 0)
