"""Batches by a budget of tokens."""

import pytest
import torch

from interlace.data.chat import load_records
from interlace.data.collate import encode, encode_prompt
from interlace.decoder.load import load_processor
from interlace.errors import InputError
from interlace.scoring import batches as module
from interlace.scoring.batches import SampleBatches
from tests.tiny import make_tiny_checkpoint, make_tiny_samples


@pytest.fixture(scope="module")
def inputs(tmp_path_factory):
    folder = tmp_path_factory.mktemp("batches")
    make_tiny_samples(folder / "samples")
    processor = load_processor(make_tiny_checkpoint(folder / "model"))
    records = load_records(folder / "samples")
    lengths = [encode(record, processor)["input_ids"].shape[1] for record in records]
    return records, processor, lengths


@pytest.mark.parametrize("budget", [1, 100, 300, 10_000])
def test_no_batch_is_above_its_budget_unless_one_sample_is(inputs, budget):
    records, processor, lengths = inputs
    batches = SampleBatches(records, processor, budget, None, "k")
    seen = 0
    for batch in batches:
        rows, width = batch["input_ids"].shape
        assert rows * width <= budget or rows == 1
        places = batches.positions[seen : seen + rows]
        assert batch["attention_mask"].sum(1).tolist() == [lengths[i] for i in places]
        seen += rows
    assert sorted(batches.positions) == list(range(len(records)))


def test_batches_do_not_waste_the_budget(inputs):
    records, processor, lengths = inputs
    budget = 4 * max(lengths)
    sizes = [
        batch["input_ids"].shape for batch in SampleBatches(records, processor, budget, None, "k")
    ]
    assert all((rows + 1) * width > budget for rows, width in sizes[:-1])


def test_chunks_are_batched_by_themselves(inputs, monkeypatch):
    records, processor, _ = inputs
    select = [5, 1, 2, 20, 3, 9, 11]
    batches = SampleBatches(records, processor, 300, None, "k", select)
    found = [[batch["input_ids"] for batch in chunk] for chunk in batches.chunks(3)]
    assert len(found) == 3
    assert sorted(batches.positions[:3]) == [1, 2, 5]
    assert batches.positions[6:] == [11]
    alone = [
        batch["input_ids"]
        for batch in SampleBatches(records, processor, 300, None, "k", [20, 3, 9])
    ]
    assert all(torch.equal(a, b) for a, b in zip(found[1], alone, strict=True))
    # A pool too small for all: smaller batches, the same samples.
    monkeypatch.setattr(module, "POOL_BYTES", 1)
    batches = SampleBatches(records, processor, 10_000, None, "k", select)
    assert [len(batch["input_ids"]) for batch in batches] == [1] * 7
    assert batches.positions == select


def test_worker_processes_change_nothing(inputs):
    records, processor, lengths = inputs
    limit = sorted(lengths)[3]
    found = []
    for workers in (0, 2):
        batches = SampleBatches(records, processor, 300, limit, "k", text="prompt", workers=workers)
        found.append((list(batches), batches.positions, batches.left_out))
    (plain, positions, left_out), (parallel, *others) = found
    assert others == [positions, left_out]
    assert left_out
    for one, other in zip(plain, parallel, strict=True):
        assert one.keys() == other.keys()
        assert all(torch.equal(one[key], other[key]) for key in one)


def test_nothing_left_names_the_key_to_raise(inputs):
    records, processor, _ = inputs
    with pytest.raises(InputError, match=r"sleb\.max_length: none of 24 calibration samples"):
        list(SampleBatches(records, processor, 300, 3, "sleb.max_length"))


def test_a_damaged_image_leaves_its_sample_out(inputs):
    from interlace.data.images import decode_image

    class Damaged:
        ids = ["a", "b"]

        def __len__(self):
            return 2

        def __getitem__(self, index):
            if index == 0:
                decode_image(b"torn")
            return next(record for record in inputs[0] if record.images)

    batches = SampleBatches(Damaged(), inputs[1], 300, None, "k")
    assert len(list(batches)) == 1
    (out,) = batches.left_out
    assert out["id"] == "a"
    assert out["reason"] == "dropped_undecodable"
    assert out["detail"].startswith("an image cannot be decoded: ")
    assert out["images"] is True


@pytest.mark.parametrize("broken", ["images", "all"])
def test_a_processor_that_refuses_is_quoted_and_no_length_is_the_cure(inputs, broken):
    records, processor, _ = inputs

    class Refusing:
        def __getattr__(self, name):
            return getattr(processor, name)

        def apply_chat_template(self, messages, **kwargs):
            first = messages[0]["content"][0]
            if broken == "all" or first["type"] == "image":
                raise ValueError("first line\nsecond line")
            return processor.apply_chat_template(messages, **kwargs)

    with_images = [name for name, record in zip(records.ids, records, strict=True) if record.images]
    lost = with_images if broken == "images" else records.ids
    assert 0 < len(with_images) < len(records)
    batches = SampleBatches(records, Refusing(), 300, 100_000, "sleb.max_length")
    kind = " with images" if broken == "images" else ""
    said = rf"sleb: none of {len(lost)} calibration samples{kind} can be encoded \({len(lost)} drop"
    with pytest.raises(InputError, match=said) as refused:
        list(batches)
    assert "max_length" not in str(refused.value)
    assert f"first {lost[0]}: first line)" in str(refused.value)
    assert [out["id"] for out in batches.left_out] == list(lost)
    assert {out["reason"] for out in batches.left_out} == {"dropped_unprocessable"}
    assert {out["detail"] for out in batches.left_out} == {"first line"}


def test_samples_with_images_may_not_all_be_too_long(inputs):
    records, processor, _ = inputs
    pictured = [i for i, record in enumerate(records) if record.images]
    shortest = min(encode_prompt(records[i], processor)["input_ids"].shape[1] for i in pictured)
    batches = SampleBatches(
        records, processor, 300, shortest - 1, "scoring.max_length", text="prompt"
    )
    with pytest.raises(
        InputError, match=r"scoring\.max_length: none of \d+ calibration samples with"
    ):
        list(batches)
    assert batches.positions
