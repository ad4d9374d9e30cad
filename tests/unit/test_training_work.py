"""What a run goes on from: whole, on the disk before it has its name, and told if it is not taken."""

import errno
import json
import os
import shutil
from pathlib import Path

import pytest
import torch
from safetensors import SafetensorError

import interlace.decoder.checkpoint as saving
import interlace.training.tune as tune
import interlace.training.work as working
from interlace.errors import InputError
from interlace.io import claimed, read_json
from interlace.training.trainer import LayerTrainer
from interlace.training.work import (
    check_whole,
    finish,
    full_disk_told,
    kept_sharding,
    readable,
    work_folder,
)
from tests.unit.training_runs import PLAN, SETTINGS, differing, make_inputs, training, tuned

EVERY_STEP = {"checkpoint_minutes": 0}
ZERO3 = {"levers": {"sharding": "zero3"}}


@pytest.fixture(scope="module")
def given(tmp_path_factory):
    return make_inputs(tmp_path_factory.mktemp("work"))


@pytest.fixture(scope="module")
def whole(given):
    return tuned(given, given / "whole")


def until_two(given, out, **changes):
    """End a run before its third step; return the steps that were begun."""
    step, begun = LayerTrainer.training_step, []

    def interrupted(self, *args, **kwargs):
        begun.append(self.state.global_step)
        if self.state.global_step == 2:
            raise KeyboardInterrupt
        return step(self, *args, **kwargs)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(LayerTrainer, "training_step", interrupted)
        with pytest.raises(KeyboardInterrupt):
            tuned(given, out, **EVERY_STEP, **changes)
    return begun


@pytest.fixture(scope="module")
def kept(given):
    """A folder with what an interrupted run left; the names of the files that it synced."""
    fsync, synced = os.fsync, set()

    def noted(descriptor):
        synced.add(Path(f"/proc/self/fd/{descriptor}").readlink().name)
        fsync(descriptor)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "fsync", noted)
        assert until_two(given, given / "kept" / "out") == [0, 1, 2]
    return given / "kept", synced


@pytest.fixture(scope="module")
def kept_of_zero3(given):
    """A folder with what an interrupted run under ZeRO-3 left."""
    assert until_two(given, given / "zero3" / "out", **ZERO3) == [0, 1, 2]
    return given / "zero3"


@pytest.fixture
def interrupted(kept, tmp_path):
    """The path of a checkpoint to be, of which a run was interrupted."""
    shutil.copytree(kept[0], tmp_path, dirs_exist_ok=True)
    return tmp_path / "out"


@pytest.fixture
def of_zero3(kept_of_zero3, tmp_path):
    """The same, of a run under ZeRO-3."""
    shutil.copytree(kept_of_zero3, tmp_path, dirs_exist_ok=True)
    return tmp_path / "out"


def checkpoint_of(out, way="none"):
    (checkpoint,) = out.parent.glob(f".out.trainer-*/{way}/checkpoint-2")
    return checkpoint


def test_the_sharding_of_the_checkpoint_is_kept_told_and_recorded(given, whole, interrupted, capfd):
    assert kept_sharding(checkpoint_of(interrupted).parents[1]) == "none"
    assert not differing(tuned(given, interrupted, **EVERY_STEP), whole)
    line = "sharding: none, as in the checkpoint that training goes on from"
    assert line in training(interrupted)["recipe"]["notes"]
    told = capfd.readouterr().out
    assert line in told
    assert "begins anew" not in told


def test_another_sharding_begins_anew_aloud_and_the_old_one_goes_in_the_end(
    given, interrupted, capfd
):
    assert until_two(given, interrupted, **ZERO3) == [0, 1, 2]
    told = capfd.readouterr().out
    assert "none/checkpoint-2 is not gone on from: finetune.levers.sharding was none" in told
    # What of the two is there is gone on from, whatever was tried in between.
    assert until_two(given, interrupted, levers={"sharding": "none"}) == [2]
    assert "begins anew" not in capfd.readouterr().out
    tuned(given, interrupted, **ZERO3)
    assert [path.name for path in interrupted.parent.iterdir()] == ["out"]


def test_other_settings_begin_anew_aloud(given, interrupted, capfd):
    assert until_two(given, interrupted, learning_rate=1e-3) == [0, 1, 2]
    assert "is not gone on from: it is of other settings" in capfd.readouterr().out


def test_of_the_deepspeed_files_only_that_in_use_counts(given, of_zero3, tmp_path, capfd):
    own = read_json(SETTINGS["deepspeed"])
    own["steps_per_print"] += 1
    (tmp_path / "own.json").write_text(json.dumps(own))
    shutil.copy(SETTINGS["deepspeed"], tmp_path / "same.json")
    same = {
        "deepspeed": str(tmp_path / "same.json"),
        "deepspeed_offload": str(tmp_path / "own.json"),
    }
    assert until_two(given, of_zero3, **ZERO3, **same) == [2]
    capfd.readouterr()
    changed = {"deepspeed": str(tmp_path / "own.json")}
    assert until_two(given, of_zero3, **ZERO3, **changed) == [0, 1, 2]
    assert "is not gone on from: the DeepSpeed file has changed" in capfd.readouterr().out


def test_only_the_layers_of_a_plan_make_another_run(given, tmp_path):
    job = {
        "base": str(given / "base"), "samples": str(given / "samples"), "seed": 0,
        "settings": SETTINGS, "out": str(tmp_path / "out"), "model_revision": "0",
    }  # fmt: skip
    made_again = {"provenance": {"git_commit": "another"}, "warnings": ["a"], "scores_digest": "b"}
    folder = work_folder(job, PLAN, 1, ["a"])
    assert work_folder(job, PLAN | made_again, 1, ["a"]) == folder
    others = [{"drop": [3]}, {"tune": [2]}, {"reading": "released"}, {"num_layers": 7}]
    for change in others:
        assert work_folder(job, PLAN | change, 1, ["a"]) != folder, change
    assert work_folder(job, PLAN, 1, ["b"]) != folder


def test_no_two_processes_work_on_one_checkpoint(given, tmp_path, monkeypatch):
    monkeypatch.setattr(tune, "load_model", None)
    with (
        claimed(tmp_path / ".out.trainer"),
        pytest.raises(InputError, match="is at work on it"),
    ):
        tuned(given, tmp_path / "out")


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


def test_a_run_syncs_what_it_goes_on_from(kept):
    folder, synced = kept
    assert {path.name for path in checkpoint_of(folder / "out").iterdir()} <= synced
    assert "none" in synced


FILES = ("optimizer.pt", "trained.safetensors", "rng_state.pth", "so_far_0.json")


def is_told(error, checkpoint):
    return (
        str(error.value).startswith(f"{checkpoint}: cannot be gone on from, it is damaged")
        and "delete this folder" in str(error.value)
        and "\n" not in str(error.value)
    )


@pytest.mark.parametrize("file", FILES)
def test_a_torn_file_of_the_same_size_is_one_line_that_says_what_to_delete(
    given, interrupted, file
):
    checkpoint = checkpoint_of(interrupted)
    whole = (checkpoint / file).read_bytes()
    (checkpoint / file).write_bytes(whole[:10].ljust(len(whole), b"\0"))
    with pytest.raises(InputError) as error:
        tuned(given, interrupted, **EVERY_STEP)
    assert is_told(error, checkpoint)


def test_a_file_that_lacks_bytes_is_named(interrupted):
    checkpoint = checkpoint_of(interrupted)
    for file in (*FILES, "sizes.json"):
        whole = (checkpoint / file).read_bytes()
        (checkpoint / file).write_bytes(whole[: len(whole) // 3])
        with pytest.raises(InputError) as error:
            check_whole(checkpoint)
        assert is_told(error, checkpoint)
        assert file in str(error.value)
        (checkpoint / file).write_bytes(whole)
    check_whole(checkpoint)


def test_without_the_damaged_checkpoint_a_run_begins_anew(given, whole, interrupted):
    shutil.rmtree(checkpoint_of(interrupted))
    assert not differing(tuned(given, interrupted, **EVERY_STEP), whole)


def test_what_is_no_fault_of_the_checkpoint_passes(tmp_path):
    for error in (
        torch.OutOfMemoryError("CUDA out of memory"),
        PermissionError(13, "no"),
        TypeError(),
    ):
        with pytest.raises(type(error)), readable(tmp_path):
            raise error


def test_a_deepspeed_checkpoint_that_lacks_bytes_is_told_as_well(given, of_zero3):
    (states,) = checkpoint_of(of_zero3, "zero3-*").glob("global_step2/*optim_states.pt")
    states.write_bytes(states.read_bytes()[:100])
    with pytest.raises(InputError, match=r"checkpoint-2: cannot be .*optim_states.pt: 100 of"):
        tuned(given, of_zero3, **ZERO3, **EVERY_STEP)


def with_free(monkeypatch, count):
    usage = shutil.disk_usage("/")._replace(free=count)
    monkeypatch.setattr(working.shutil, "disk_usage", lambda _: usage)


def test_a_checkpoint_that_will_not_fit_beside_the_last_is_not_begun(
    given, interrupted, monkeypatch
):
    before = checkpoint_of(interrupted)
    with_free(monkeypatch, 1000)
    with pytest.raises(InputError, match=r"GB needed, .* free; free some and run again"):
        tuned(given, interrupted, **EVERY_STEP)
    check_whole(before)


@pytest.mark.parametrize(
    ("error", "free"),
    [
        (OSError(errno.ENOSPC, "No space left on device"), 10**9),
        (SafetensorError("I/O error: No space left on device (os error 28)"), 10**9),
        (RuntimeError("[enforce fail] . PytorchStreamWriter failed writing file data/0"), 0),
    ],
)
def test_a_disk_that_gets_full_is_one_line_with_a_way_out(tmp_path, monkeypatch, error, free):
    with_free(monkeypatch, free)
    with (
        pytest.raises(InputError, match=r"partial: the disk is full .*free some") as told,
        full_disk_told(tmp_path / "partial"),
    ):
        raise error
    assert "\n" not in str(told.value)


@pytest.mark.parametrize("words", ["PytorchStreamWriter failed", "CUDA out of memory"])
def test_what_is_no_fault_of_the_disk_passes(tmp_path, monkeypatch, words):
    with_free(monkeypatch, 10**9)
    with pytest.raises(RuntimeError, match=words), full_disk_told(tmp_path / "partial"):
        raise RuntimeError(words)
