"""A run that is killed anywhere goes on from its last checkpoint to the same weights, to the bit."""

import errno
import itertools
import json
import os
import random
import signal
import subprocess
import sys
import time
from functools import partial

import pytest
from safetensors.torch import load_file

import interlace.training.tune as tune
from interlace.errors import InputError
from interlace.training.trainer import LayerTrainer
from tests.unit.training_runs import (
    SETTINGS,
    differing,
    make_inputs,
    spoil,
    training,
    tuned,
)

EVERY_STEP = {"checkpoint_minutes": 0}


@pytest.fixture(scope="module")
def given(tmp_path_factory):
    root = make_inputs(tmp_path_factory.mktemp("resume"))
    config = json.loads((root / "base/config.json").read_text())
    config["text_config"]["attention_dropout"] = 0.2  # what a run draws follows from random states
    (root / "base/config.json").write_text(json.dumps(config))
    return root


@pytest.fixture(scope="module")
def once(given):
    return tuned(given, given / "once")


def steps(file):
    return [json.loads(line)["step"] for line in file.open()]


@pytest.mark.parametrize("recipe", ["fast", "paper"])
def test_an_interrupted_run_goes_on_to_the_same_weights(given, tmp_path, monkeypatch, recipe):
    whole = tuned(given, tmp_path / "whole", recipe=recipe)
    step = LayerTrainer.training_step

    def interrupted(self, *args, **kwargs):
        if self.state.global_step == 3:
            raise KeyboardInterrupt
        return step(self, *args, **kwargs)

    monkeypatch.setattr(LayerTrainer, "training_step", interrupted)
    with pytest.raises(KeyboardInterrupt):
        tuned(given, tmp_path / "out", recipe=recipe, **EVERY_STEP)
    (work,) = tmp_path.glob(".out.trainer-*")
    assert [path.name for path in work.glob("*/checkpoint-*")] == ["checkpoint-3"]
    seen = []

    def watched(self, *args, **kwargs):
        seen.append(self.state.global_step + 1)
        return step(self, *args, **kwargs)

    monkeypatch.setattr(LayerTrainer, "training_step", watched)
    assert not differing(tuned(given, tmp_path / "out", recipe=recipe, **EVERY_STEP), whole)
    assert seen == [4, 5, 6]
    assert steps(tmp_path / "out" / "training.jsonl") == [1, 2, 3, 4, 5, 6]
    assert not list(tmp_path.glob(".out*"))


def test_a_checkpoint_that_was_being_written_is_not_gone_on_from(
    given, once, tmp_path, monkeypatch
):
    save = LayerTrainer._save_rng_state
    calls = []

    def killed(self, folder):
        calls.append(folder)
        if len(calls) == 3:
            raise KeyboardInterrupt
        save(self, folder)

    monkeypatch.setattr(LayerTrainer, "_save_rng_state", killed)
    with pytest.raises(KeyboardInterrupt):
        tuned(given, tmp_path / "out", **EVERY_STEP)
    (work,) = tmp_path.glob(".out.trainer-*")
    assert [path.name for path in work.glob("*/checkpoint-*")] == ["checkpoint-2"]
    assert (work / "none" / "partial" / "checkpoint-3" / "optimizer.pt").exists()
    monkeypatch.setattr(LayerTrainer, "_save_rng_state", save)
    assert not differing(tuned(given, tmp_path / "out", **EVERY_STEP), once)


def test_only_the_same_run_is_gone_on_with(given, once, tmp_path, monkeypatch):
    def interrupted(self, *args, **kwargs):
        raise KeyboardInterrupt

    step = LayerTrainer.training_step
    monkeypatch.setattr(LayerTrainer, "training_step", interrupted)
    with pytest.raises(KeyboardInterrupt):
        tuned(given, tmp_path / "out", seed=1, **EVERY_STEP)
    monkeypatch.setattr(LayerTrainer, "training_step", step)
    assert not differing(tuned(given, tmp_path / "out", **EVERY_STEP), once)


def test_checkpoints_come_by_the_clock(given, tmp_path, monkeypatch):
    clock = itertools.count(0, 7)  # every look at it is 7 s later
    monkeypatch.setattr(tune, "Exchange", partial(tune.Exchange, clock=lambda: float(next(clock))))
    saved = []
    save = LayerTrainer._save_checkpoint

    def noted(self, *args):
        saved.append(self.state.global_step)
        save(self, *args)

    monkeypatch.setattr(LayerTrainer, "_save_checkpoint", noted)
    tuned(given, tmp_path / "out", checkpoint_minutes=1, epochs=4)
    gaps = {b - a for a, b in itertools.pairwise(saved[:-1])}
    assert len(saved) > 2
    assert len(gaps) == 1
    assert saved[-1] == 24  # what follows the last step can fail too


def test_what_was_left_out_before_the_kill_is_not_forgotten(given, tmp_path, monkeypatch):
    spoil(given / "samples", tmp_path / "spoiled", 1)
    whole = tuned(given, tmp_path / "whole", samples=tmp_path / "spoiled")
    step = LayerTrainer.training_step

    def interrupted(self, *args, **kwargs):
        if self.state.global_step == 5:
            raise KeyboardInterrupt
        return step(self, *args, **kwargs)

    monkeypatch.setattr(LayerTrainer, "training_step", interrupted)
    with pytest.raises(KeyboardInterrupt):
        tuned(given, tmp_path / "out", samples=tmp_path / "spoiled", **EVERY_STEP)
    monkeypatch.setattr(LayerTrainer, "training_step", step)
    assert not differing(
        tuned(given, tmp_path / "out", samples=tmp_path / "spoiled", **EVERY_STEP), whole
    )
    records = [training(tmp_path / name) for name in ("out", "whole")]
    assert records[0]["counts"] == records[1]["counts"]
    assert records[0]["failures"] == records[1]["failures"] != []


def test_a_save_that_fails_is_done_again_without_training(given, once, tmp_path, monkeypatch):
    def full(*_, **__):
        raise OSError(errno.ENOSPC, "No space left on device")

    save = tune.save_checkpoint
    monkeypatch.setattr(tune, "save_checkpoint", full)
    with pytest.raises(InputError, match=r"out: the disk is full .*goes on from its last"):
        tuned(given, tmp_path / "out", checkpoint_minutes=30)
    monkeypatch.setattr(tune, "save_checkpoint", save)
    monkeypatch.setattr(LayerTrainer, "training_step", None)
    assert not differing(tuned(given, tmp_path / "out", checkpoint_minutes=30), once)


@pytest.mark.parametrize(
    ("change", "goes_on"),
    [
        ({"pack_tokens": 100}, True),
        ({"levers": {"checkpointing": "tuned"}}, True),
        ({"max_failed_share": 0.5}, True),
        ({"learning_rate": 2e-2}, False),
        ({"max_length": 300}, False),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)
def test_what_does_not_change_the_weights_does_not_begin_anew(
    given, tmp_path, monkeypatch, change, goes_on
):
    step = LayerTrainer.training_step
    seen = []

    def interrupted(self, *args, **kwargs):
        seen.append(self.state.global_step)
        if self.state.global_step == 2:
            raise KeyboardInterrupt
        return step(self, *args, **kwargs)

    monkeypatch.setattr(LayerTrainer, "training_step", interrupted)
    for changes in ({}, change):
        with pytest.raises(KeyboardInterrupt):
            tuned(given, tmp_path / "out", **{**EVERY_STEP, **changes})
    assert seen == ([0, 1, 2, 2] if goes_on else [0, 1, 2, 0, 1, 2])


def test_other_texts_under_the_same_names_begin_anew(given, tmp_path, monkeypatch):
    step = LayerTrainer.training_step
    seen = []

    def interrupted(self, *args, **kwargs):
        seen.append(self.state.global_step)
        if self.state.global_step == 2:
            raise KeyboardInterrupt
        return step(self, *args, **kwargs)

    monkeypatch.setattr(LayerTrainer, "training_step", interrupted)
    spoil(given / "samples", tmp_path / "other", 1)
    for samples in ("samples", tmp_path / "other"):
        with pytest.raises(KeyboardInterrupt):
            tuned(given, tmp_path / "out", samples=samples, **EVERY_STEP)
    assert seen == [0, 1, 2, 0, 1, 2]


@pytest.mark.slow
def test_kill_9_at_any_step_and_again_ends_in_the_same_weights(given, tmp_path):
    whole = tuned(given, tmp_path / "whole", epochs=5)
    out = tmp_path / "out"
    job = {
        "base": str(given / "base"), "plan": str(given / "plan.json"),
        "samples": str(given / "samples"), "out": str(out),
        "settings": {**SETTINGS, **EVERY_STEP, "epochs": 5},
    }  # fmt: skip
    code = (
        "import json, sys; from interlace.training.run import finetune;"
        "finetune(**json.loads(sys.argv[1]), model='tiny', variant='v', seed=0)"
    )
    rng = random.Random(0)
    reached, kills = 0, 0
    while not out.exists():
        process = subprocess.Popen(
            [sys.executable, "-c", code, json.dumps(job)],
            stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True,
        )  # fmt: skip
        goal = reached + rng.randint(4, 9)
        while process.poll() is None and kills < 2:
            done = [steps(file) for file in tmp_path.glob(".out.trainer-*/none/training.jsonl")]
            reached = max([reached, *(max(numbers, default=0) for numbers in done)])
            if reached >= goal:
                time.sleep(rng.random() / 20)
                os.killpg(process.pid, signal.SIGKILL)
                kills += 1
                break
            time.sleep(0.02)
        assert process.wait(timeout=200) in (0, -signal.SIGKILL)
    assert kills == 2
    assert not differing(load_file(out / "model.safetensors"), whole)
