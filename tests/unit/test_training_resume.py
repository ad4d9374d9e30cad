"""A run that is killed anywhere goes on from its last checkpoint to the same weights, to the bit."""

import itertools
import json
import os
import random
import signal
import subprocess
import sys
import time

import pytest
from safetensors.torch import load_file

from interlace.training.trainer import LayerTrainer
from tests.unit.training_runs import (
    SETTINGS,
    differing,
    in_process,
    make_inputs,
    tuned,
)

EVERY_STEP = {"checkpoint_minutes": 0}


@pytest.fixture(scope="module")
def given(tmp_path_factory):
    return make_inputs(tmp_path_factory.mktemp("resume"))


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
    assert [path.name for path in work.glob("checkpoint-*")] == ["checkpoint-3"]
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
    assert [path.name for path in work.glob("checkpoint-*")] == ["checkpoint-2"]
    assert (work / "partial" / "checkpoint-3" / "optimizer.pt").exists()
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
    import interlace.training.metrics as metrics

    clock = iter(range(0, 10_000, 7))  # every look at it is 7 s later
    monkeypatch.setattr(metrics.time, "monotonic", lambda: float(next(clock)))
    saved = []
    save = LayerTrainer._save_checkpoint

    def noted(self, *args):
        saved.append(self.state.global_step)
        save(self, *args)

    monkeypatch.setattr(LayerTrainer, "_save_checkpoint", noted)
    tuned(given, tmp_path / "out", checkpoint_minutes=1, epochs=4)
    gaps = {b - a for a, b in itertools.pairwise(saved)}
    assert len(saved) > 2
    assert len(gaps) == 1
    assert 24 not in saved  # the last step's weights are the checkpoint itself


@pytest.mark.slow
def test_kill_9_at_any_step_and_again_ends_in_the_same_weights(given, tmp_path):
    whole = in_process(given, tmp_path / "whole", epochs=5)
    assert whole.returncode == 0, whole.stderr
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
        while process.poll() is None and kills < 3:
            done = [steps(file) for file in tmp_path.glob(".out.trainer-*/training.jsonl")]
            reached = max([reached, *(max(numbers, default=0) for numbers in done)])
            if reached >= goal:
                time.sleep(rng.random() / 20)
                os.killpg(process.pid, signal.SIGKILL)
                kills += 1
                break
            time.sleep(0.002)
        assert process.wait(timeout=200) in (0, -signal.SIGKILL)
    assert kills == 3
    assert not differing(
        load_file(out / "model.safetensors"),
        load_file(tmp_path / "whole" / "model.safetensors"),
    )
