"""Runs that lack something: memory, or the vision tower, whose features are stored."""

import json

import pytest
import torch

import interlace.training.setup as setup
from interlace.errors import InputError
from interlace.training.vision_cache import cache_vision
from tests.unit.training_runs import SETTINGS, losses, make_inputs, training, tuned


@pytest.fixture(scope="module")
def given(tmp_path_factory):
    return make_inputs(tmp_path_factory.mktemp("memory"))


@pytest.fixture(scope="module")
def once(given):
    return tuned(given, given / "once")


@pytest.fixture(scope="module")
def stored(given):
    cache_vision(given / "base", given / "samples", given / "vision", SETTINGS, model="tiny")
    return given / "vision"


def agree(left, right):
    for name, weight in right.items():
        torch.testing.assert_close(left[name], weight, atol=1e-5, rtol=0)


def with_room_for(monkeypatch, tokens):
    """Let micro-batches of more tokens run out of memory."""
    call = setup.Objective.__call__

    def limited(self, model, batch):
        if batch.labels.numel() > tokens:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 5.00 GiB.")
        return call(self, model, batch)

    monkeypatch.setattr(setup.Objective, "__call__", limited)


@pytest.mark.parametrize("recipe", ["fast", "paper"])
def test_after_running_out_of_memory_the_next_attempt_takes_half_at_a_time(
    given, once, tmp_path, monkeypatch, recipe
):
    with_room_for(monkeypatch, 200)
    attempts = []
    while not (tmp_path / "out").exists():
        try:
            weights = tuned(given, tmp_path / "out", recipe=recipe, checkpoint_minutes=0)
        except InputError as error:
            attempts.append(str(error))
    assert not any("\n" in line for line in attempts)
    assert 1 <= len(attempts) <= 3
    key = {"fast": "pack_tokens", "paper": "micro_batch"}[recipe]
    assert all(
        "out of memory in tune interlace-25-ft, step " in line
        and "the next attempt takes" in line
        and f"lower finetune.{key}" in line
        for line in attempts
    )
    agree(weights, once)
    assert training(tmp_path / "out")["memory"]["divisor"] == 2 ** len(attempts)
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_with_one_sample_at_a_time_there_is_no_smaller_attempt(given, tmp_path, monkeypatch):
    with_room_for(monkeypatch, 0)
    lines = []
    for _ in range(4):
        with pytest.raises(InputError) as caught:
            tuned(given, tmp_path / "out", recipe="paper")
        lines.append(str(caught.value))
    assert "it was one sample alone" in lines[-1]
    assert "lower finetune.max_length" in lines[-1]


def test_another_error_leaves_the_size_as_it_is(given, tmp_path, monkeypatch):
    def broken(self, model, batch):
        raise RuntimeError("something else")

    monkeypatch.setattr(setup.Objective, "__call__", broken)
    with pytest.raises(RuntimeError, match="something else"):
        tuned(given, tmp_path / "out")
    assert not list(tmp_path.glob("*.memory.json"))


@pytest.mark.parametrize("packing", [True, False])
def test_stored_vision_features_give_the_same_weights(given, once, stored, tmp_path, packing):
    levers = {"vision": "cached", "packing": packing}
    agree(tuned(given, tmp_path / "out", vision=stored, levers=levers), once)
    assert training(tmp_path / "out")["recipe"]["vision"] == "cached"


def test_with_stored_features_the_vision_tower_never_runs(given, stored, tmp_path, monkeypatch):
    from transformers.models.qwen3_vl.modeling_qwen3_vl import Qwen3VLVisionBlock

    calls = []
    forward = Qwen3VLVisionBlock.forward
    monkeypatch.setattr(
        Qwen3VLVisionBlock,
        "forward",
        lambda self, *a, **k: calls.append(1) or forward(self, *a, **k),
    )
    tuned(given, tmp_path / "out", vision=stored, levers={"vision": "cached"}, epochs=1 / 6)
    cached = len(calls)
    calls.clear()
    tuned(given, tmp_path / "live", epochs=1 / 6)
    # What is left are the two looks at a finished checkpoint: three blocks, before and after.
    assert cached == 6 < len(calls)


@pytest.mark.slow
def test_ranks_with_stored_features_meet_text_without_the_tower(given, stored, tmp_path):
    tuned(
        given, tmp_path / "out", vision=stored, levers={"vision": "cached"}, processes=2,
        micro_batch=2,
    )  # fmt: skip
    tuned(given, tmp_path / "alone", micro_batch=2, accumulation=2)
    assert losses(tmp_path / "out") == pytest.approx(losses(tmp_path / "alone"), abs=1e-5)


def test_what_was_expected_of_memory_is_recorded(given, once):
    record = json.loads((given / "once" / "interlace.json").read_text())["training"]["memory"]
    assert record["estimate_bytes"]["trained weights"] == 4 * 18_592
    assert record["why"].startswith("plain on one device, no checkpointing")
