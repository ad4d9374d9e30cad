"""What a run goes on from: whole, on the disk before it has its name, and told if it is not taken."""

import json
import os
import shutil
from pathlib import Path

import pytest

import interlace.decoder.checkpoint as saving
import interlace.training.fit as fitting
from interlace.errors import InputError
from interlace.io import read_json
from interlace.training.trainer import LayerTrainer
from interlace.training.work import check_whole, finish, kept_sharding, readable
from tests.unit.training_runs import SETTINGS, differing, make_inputs, training, tuned

EVERY_STEP = {"checkpoint_minutes": 0}
choose_sharding = fitting.memory.choose_sharding


@pytest.fixture(scope="module")
def given(tmp_path_factory):
    return make_inputs(tmp_path_factory.mktemp("work"))


@pytest.fixture
def until_two(monkeypatch):
    """End every run before its third step; return the steps that were begun, a list a run."""
    step, runs = LayerTrainer.training_step, []

    def interrupted(self, *args, **kwargs):
        runs[-1].append(self.state.global_step)
        if self.state.global_step == 2:
            raise KeyboardInterrupt
        return step(self, *args, **kwargs)

    def run(*args, **changes):
        runs.append([])
        monkeypatch.setattr(LayerTrainer, "training_step", interrupted)
        with pytest.raises(KeyboardInterrupt):
            tuned(*args, **EVERY_STEP, **changes)
        monkeypatch.setattr(LayerTrainer, "training_step", step)
        return runs[-1]

    return run


def let_auto_mean(monkeypatch, way):
    """Let the memory that is free be such that `auto` chooses `way`."""

    def choose(estimate_for, available, world, sharding, *rest):
        return choose_sharding(
            estimate_for, available, world, way if sharding == "auto" else sharding, *rest
        )

    monkeypatch.setattr(fitting.memory, "choose_sharding", choose)


def test_auto_keeps_the_sharding_of_the_checkpoint(given, tmp_path, monkeypatch, until_two, capfd):
    assert until_two(given, tmp_path / "out") == [0, 1, 2]
    (work,) = tmp_path.glob(".out.trainer-*")
    assert kept_sharding(work) == "none"
    let_auto_mean(monkeypatch, "zero3_offload")
    capfd.readouterr()
    assert until_two(given, tmp_path / "out") == [2]
    assert (
        "sharding: none, as in the checkpoint that training goes on from" in capfd.readouterr().out
    )
    assert until_two(given, tmp_path / "other") == [0, 1, 2]
    (other,) = tmp_path.glob(".other.trainer-*")
    assert kept_sharding(other) == "zero3_offload"


def test_another_sharding_begins_anew_aloud_and_the_old_one_goes_in_the_end(
    given, tmp_path, until_two, capfd
):
    assert until_two(given, tmp_path / "out") == [0, 1, 2]
    assert "begins anew" not in capfd.readouterr().out
    assert until_two(given, tmp_path / "out", levers={"sharding": "zero3"}) == [0, 1, 2]
    told = capfd.readouterr().out
    assert "none/checkpoint-2 is not gone on from: finetune.levers.sharding was none" in told
    # What of the two is there is gone on from, whatever was tried in between.
    assert until_two(given, tmp_path / "out", levers={"sharding": "none"}) == [2]
    assert until_two(given, tmp_path / "out", levers={"sharding": "zero3"}) == [2]
    assert "begins anew" not in capfd.readouterr().out
    tuned(given, tmp_path / "out", levers={"sharding": "zero3"})
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_other_settings_begin_anew_aloud(given, tmp_path, until_two, capfd):
    assert until_two(given, tmp_path / "out") == [0, 1, 2]
    assert until_two(given, tmp_path / "out", learning_rate=1e-3) == [0, 1, 2]
    assert "is not gone on from: it is of other settings" in capfd.readouterr().out


def test_of_the_deepspeed_files_only_that_in_use_counts(given, tmp_path, until_two, capfd):
    own = read_json(SETTINGS["deepspeed"])
    own["steps_per_print"] += 1
    (tmp_path / "own.json").write_text(json.dumps(own))
    shutil.copy(SETTINGS["deepspeed"], tmp_path / "same.json")
    zero3 = {"levers": {"sharding": "zero3"}}
    changed = {"deepspeed_offload": str(tmp_path / "own.json")}
    assert until_two(given, tmp_path / "out", **zero3) == [0, 1, 2]
    assert until_two(given, tmp_path / "out", **zero3, **changed) == [2]
    same = {"deepspeed": str(tmp_path / "same.json")}
    assert until_two(given, tmp_path / "out", **zero3, **same) == [2]
    capfd.readouterr()
    changed = {"deepspeed": str(tmp_path / "own.json")}
    assert until_two(given, tmp_path / "out", **zero3, **changed) == [0, 1, 2]
    assert "is not gone on from: the DeepSpeed file has changed" in capfd.readouterr().out


def test_a_checkpoint_is_on_the_disk_before_it_has_its_name(tmp_path, monkeypatch):
    done = []
    fsync, replace, remove = os.fsync, Path.replace, shutil.rmtree

    def noted(name, function):
        def call(where, *rest, **options):
            path = Path(f"/proc/self/fd/{where}").readlink() if name == "sync" else str(where)
            done.append((name, Path(path).name))
            return function(where, *rest, **options)

        return call

    monkeypatch.setattr(os, "fsync", noted("sync", fsync))
    monkeypatch.setattr(Path, "replace", noted("rename", replace))
    monkeypatch.setattr("interlace.io.shutil.rmtree", noted("remove", remove))
    (tmp_path / "checkpoint-1").mkdir()
    partial = tmp_path / "partial" / "checkpoint-2"
    (partial / "global_step2").mkdir(parents=True)
    (partial / "global_step2" / "states.pt").write_bytes(b"states")
    saving.sync(partial)
    finish(partial, tmp_path / "checkpoint-2")
    kept = [entry for entry in done if not entry[1].startswith(".")]  # of write_json
    last = kept.index(("rename", "checkpoint-2"))
    assert {("sync", "states.pt"), ("sync", "sizes.json"), ("sync", "global_step2")} <= set(
        kept[:last]
    )
    assert kept[last + 1 :] == [("sync", tmp_path.name), ("remove", "checkpoint-1")]


def test_a_run_syncs_what_it_goes_on_from(given, tmp_path, monkeypatch, until_two):
    fsync, synced = os.fsync, set()

    def noted(descriptor):
        synced.add(Path(f"/proc/self/fd/{descriptor}").readlink().name)
        fsync(descriptor)

    monkeypatch.setattr(os, "fsync", noted)
    until_two(given, tmp_path / "out")
    (checkpoint,) = tmp_path.glob(".out.trainer-*/none/checkpoint-2")
    assert {path.name for path in checkpoint.iterdir()} <= synced
    assert "none" in synced


@pytest.mark.parametrize(
    "file", ["optimizer.pt", "trained.safetensors", "rng_state.pth", "so_far_0.json"]
)
@pytest.mark.parametrize("same_size", [False, True])
def test_a_torn_checkpoint_is_one_line_that_says_what_to_delete(
    given, tmp_path, until_two, file, same_size
):
    until_two(given, tmp_path / "out")
    (checkpoint,) = tmp_path.glob(".out.trainer-*/none/checkpoint-2")
    whole = (checkpoint / file).read_bytes()
    torn = whole[: 10 if same_size else len(whole) // 3]
    (checkpoint / file).write_bytes(torn.ljust(len(whole), b"\0") if same_size else torn)
    with pytest.raises(InputError, match="cannot be gone on from, it is damaged") as error:
        tuned(given, tmp_path / "out", **EVERY_STEP)
    assert f"{checkpoint}: " in str(error.value)
    assert "delete this folder" in str(error.value)
    assert "\n" not in str(error.value)
    assert same_size or file in str(error.value)
    shutil.rmtree(checkpoint)
    assert not differing(
        tuned(given, tmp_path / "out", **EVERY_STEP), tuned(given, tmp_path / "whole")
    )


def test_what_is_no_fault_of_the_checkpoint_passes(tmp_path):
    import torch

    for error in (
        torch.OutOfMemoryError("CUDA out of memory"),
        PermissionError(13, "no"),
        TypeError(),
    ):
        with pytest.raises(type(error)), readable(tmp_path):
            raise error
    check_whole(tmp_path)  # of an earlier version, which wrote no sizes


def test_a_deepspeed_checkpoint_that_lacks_bytes_is_told_as_well(given, tmp_path, until_two):
    until_two(given, tmp_path / "out", recipe="paper")
    (states,) = tmp_path.glob(".out.trainer-*/zero3-*/checkpoint-2/global_step2/*optim_states.pt")
    states.write_bytes(states.read_bytes()[:100])
    with pytest.raises(InputError, match=r"checkpoint-2: cannot be .*optim_states.pt: 100 of"):
        tuned(given, tmp_path / "out", recipe="paper", **EVERY_STEP)


def test_the_sharding_that_was_kept_is_recorded(given, tmp_path, monkeypatch, until_two):
    until_two(given, tmp_path / "out")
    tuned(given, tmp_path / "out", **EVERY_STEP)
    assert training(tmp_path / "out")["recipe"]["notes"] == [
        "sharding: none, as in the checkpoint that training goes on from"
    ]
