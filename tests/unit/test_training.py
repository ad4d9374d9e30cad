"""What a tuned checkpoint is: the planned layers changed and nothing else, and a record of it."""

import errno
import json
import os
import re
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForImageTextToText

from interlace.decoder.layers import decoder_layers, num_layers
from interlace.decoder.load import load_model
from interlace.errors import InputError
from interlace.io import digest, read_json
from interlace.training.freeze import apply_plan
from interlace.training.run import finetune
from interlace.training.trainer import LayerTrainer
from tests.tiny import make_tiny_checkpoint
from tests.unit.training_runs import (
    PLAN,
    PREFIX,
    ROOT,
    SETTINGS,
    differing,
    in_process,
    losses,
    make_inputs,
    training,
    tuned,
)


@pytest.fixture(scope="module")
def given(tmp_path_factory):
    return make_inputs(tmp_path_factory.mktemp("training"))


@pytest.fixture(scope="module")
def once(given):
    return tuned(given, given / "once")


def pruned(given):
    """Return the base's weights without layer 1, under the numbers after dropping."""
    renumbered = {}
    for name, weight in load_file(given / "base" / "model.safetensors").items():
        if name.startswith(PREFIX):
            index, rest = name.removeprefix(PREFIX).split(".", 1)
            if index == "1":
                continue
            name = f"{PREFIX}{int(index) - (int(index) > 1)}.{rest}"
        renumbered[name] = weight
    return renumbered


def test_exactly_the_planned_layers_change(given, once):
    changed = differing(once, pruned(given))
    assert changed == {name for name in once if name.startswith((f"{PREFIX}1.", f"{PREFIX}3."))}


def test_the_released_reading_trains_an_untied_head_too(given, tmp_path):
    (given / "released.json").write_text(json.dumps({**PLAN, "reading": "released"}))
    for recipe in ("fast", "paper"):
        out = tmp_path / recipe
        changed = differing(tuned(given, out, plan="released.json", recipe=recipe), pruned(given))
        layers = (f"{PREFIX}1.", f"{PREFIX}3.")
        assert {name for name in changed if not name.startswith(layers)} == {"lm_head.weight"}
        assert "lm_head.weight" in training(out)["trained_parameters"]
    assert losses(tmp_path / "fast") == pytest.approx(losses(tmp_path / "paper"), abs=1e-5)


def test_the_record_says_what_was_done(given, once):
    record = json.loads((given / "once" / "interlace.json").read_text())
    done = record["training"]
    rows = [json.loads(line) for line in (given / "once" / "training.jsonl").open()]
    assert [row["step"] for row in rows] == list(range(1, 7))  # 24 samples in steps of 4
    assert done["steps"] == 6
    assert done["loss_first"] == rows[0]["loss"]
    assert done["loss_last"] == rows[-1]["loss"] < rows[0]["loss"]
    assert all(row["grad_norm"] > 0 for row in rows)
    assert all(row["samples"] == 4 for row in rows)
    assert sum(row["supervised_tokens"] for row in rows) == done["counts"]["supervised_tokens"]
    assert done["num_trained_tensors"] == 22 == len(done["trained_parameters"])
    assert done["counts"]["samples"] == 24
    assert done["failures"] == []
    assert done["recipe"]["name"] == "fast"
    assert "auto" not in done["recipe"].values()
    assert record["num_layers"] == num_layers(given / "once") == 5
    assert record["plan"]["drop"] == [1]
    AutoModelForImageTextToText.from_pretrained(given / "once")
    assert not list(given.glob(".once*"))


def test_the_same_seed_gives_the_same_weights(given, once, tmp_path):
    assert not differing(tuned(given, tmp_path / "again"), once)
    assert differing(tuned(given, tmp_path / "other", seed=1), once)


def test_numbers_of_every_step_can_be_read_while_it_runs(given, tmp_path, monkeypatch, capfd):
    step = LayerTrainer.training_step
    seen = []

    def watched(self, *args, **kwargs):
        (file,) = tmp_path.glob(".out.trainer-*/none/training.jsonl")
        seen.append([json.loads(line)["step"] for line in file.open()])
        assert list(file.parent.glob("tensorboard/events.*"))
        return step(self, *args, **kwargs)

    monkeypatch.setattr(LayerTrainer, "training_step", watched)
    tuned(given, tmp_path / "out")
    assert seen == [list(range(1, n)) for n in range(1, 7)]
    told = capfd.readouterr()
    assert (
        "18,592 of 226,736 parameters in 22 tensors:"
        " model.language_model.layers.{1, 3}.{input_layernorm.weight, mlp.down_proj.weight, "
    ) in told.out
    assert list(tmp_path.glob("out/tensorboard/events.*"))
    assert "peak of one device" in told.out
    assert "samples/s" in told.err


def test_nothing_is_compiled_and_no_port_is_opened(given, tmp_path, monkeypatch):
    import deepspeed

    from interlace.training import distributed

    seen = []

    def leave():
        seen.append((deepspeed.comm.comm.cdb.shm_comm_op, os.environ["MASTER_PORT"]))
        leave_as_ever()

    leave_as_ever = distributed.leave
    monkeypatch.setattr(distributed, "leave", leave)
    tuned(given, tmp_path / "out", recipe="paper")
    assert seen == [(None, "0")]
    assert "WORLD_SIZE" not in os.environ


def test_without_tuning_layers_are_only_dropped(given, tmp_path):
    dropped = tuned(given, tmp_path / "out", tune=False)
    assert not differing(dropped, pruned(given))
    assert training(tmp_path / "out") is None


def test_a_plan_of_another_depth_is_refused(given, tmp_path):
    make_tiny_checkpoint(tmp_path / "base", layers=4)
    with pytest.raises(InputError, match="a plan for 6 layers, the model has 4"):
        finetune(
            tmp_path / "base", given / "plan.json", given / "samples", tmp_path / "out", SETTINGS,
            model="tiny", variant="v", seed=0,
        )  # fmt: skip


@pytest.mark.parametrize(("drop", "tune"), [([1], [1, 2]), ([1], [6])])
def test_contradictory_roles_are_refused(given, drop, tune):
    with pytest.raises(InputError, match="plan:"):
        apply_plan(load_model(given / "base"), drop, tune)


@pytest.mark.parametrize("head", [False, True])
def test_the_tied_head_is_frozen(tmp_path, head):
    model = load_model(make_tiny_checkpoint(tmp_path / "tied", tied=True))
    names = apply_plan(model, [0], [5], head=head)
    trainable = {id(weight) for weight in model.parameters() if weight.requires_grad}
    assert trainable == {id(weight) for weight in decoder_layers(model)[4].parameters()}
    assert all(name.startswith(f"{PREFIX}4.") for name in names)


def test_workers_send_a_step_in_one_piece(given, once, tmp_path, monkeypatch):
    import interlace.training.trainer as trainer

    seen = []
    unwrap = trainer.unwrap
    monkeypatch.setattr(trainer, "unwrap", lambda parcel: seen.append(parcel) or unwrap(parcel))
    assert not differing(tuned(given, tmp_path / "out", workers=1), once)
    assert len(seen) == 6


def test_only_what_was_drawn_counts_as_used(given, tmp_path):
    tuned(given, tmp_path / "out", epochs=0.5)
    record = json.loads((tmp_path / "out/interlace.json").read_text())
    assert record["provenance"]["num_samples"] == record["training"]["counts"]["samples"] == 12


def test_without_tensorboard_a_run_ends_as_well(given, once, tmp_path, monkeypatch):
    import interlace.training.metrics as metrics

    monkeypatch.setattr(metrics, "is_tensorboard_available", lambda: False)
    assert not differing(tuned(given, tmp_path / "out"), once)
    assert not (tmp_path / "out/tensorboard").exists()


def test_a_checkpoint_has_its_name_only_with_all_its_files(given, tmp_path, monkeypatch):
    copyfile = shutil.copyfile

    def full(source, target, **options):
        if "tfevents" in str(source):
            raise OSError(errno.ENOSPC, "No space left on device")
        return copyfile(source, target, **options)

    monkeypatch.setattr(shutil, "copyfile", full)
    with pytest.raises(InputError, match="the disk is full"):
        tuned(given, tmp_path / "out", epochs=1 / 6)
    assert not (tmp_path / "out").exists()


def test_a_checkpoint_tells_nothing_of_the_machine(given, tmp_path, monkeypatch):
    """Neither the host's name nor a path, in no file but the weights."""
    monkeypatch.setattr("socket.gethostname", lambda: "canary-host")
    for recipe in ("fast", "paper"):
        out = tmp_path / recipe
        tuned(given, out, recipe=recipe, epochs=1 / 6)
        files = [path for path in out.rglob("*") if path.is_file()]
        (events,) = out.glob("tensorboard/*")
        assert re.fullmatch(r"events\.out\.tfevents\.\d+", events.name)
        assert b"train/loss" in events.read_bytes()
        for path in files:
            assert "canary-host" not in str(path)
            for word in (b"canary-host", bytes(tmp_path), bytes(given), bytes(ROOT)):
                assert word not in path.read_bytes(), (path, word)
    assert training(tmp_path / "fast")["deepspeed"] is None
    file = Path(SETTINGS["deepspeed"])
    assert training(tmp_path / "paper")["deepspeed"] == {
        "file": file.name, "digest": digest(read_json(file))
    }  # fmt: skip


def test_a_checkpoint_in_16_bits_gives_back_what_was_trained(tmp_path, monkeypatch):
    """The reload's logits were checked against a model whose rotary frequencies were rounded too."""
    import interlace.decoder.checkpoint as checkpoint

    seen, trainers = [], []
    verify, go_on_from = checkpoint.verify_checkpoint, LayerTrainer.go_on_from

    def verified(*args, **options):
        seen.append(verify(*args, **options))
        # The reload is to have the room that training's own numbers had.
        (trainer,) = trainers
        assert not trainer.optimizer.state
        assert all(weight.grad is None for weight in trainer.model.parameters())

    monkeypatch.setattr(checkpoint, "verify_checkpoint", verified)
    monkeypatch.setattr(
        LayerTrainer, "go_on_from", lambda self, *a: trainers.append(self) or go_on_from(self, *a)
    )
    given = make_inputs(tmp_path, seed=1)
    weights = tuned(given, tmp_path / "out", precision="bfloat16", epochs=0.5)
    assert {weight.dtype for weight in weights.values()} == {torch.bfloat16}
    assert seen == [0.0]


def test_several_processes_need_sharding(given, tmp_path):
    with pytest.raises(InputError, match="sharding: none is for one process"):
        tuned(given, tmp_path / "out", processes=2, levers={"sharding": "none"})


def test_a_run_of_its_own_process_leaves_nothing_but_the_checkpoint(given, once, tmp_path):
    done = in_process(given, tmp_path / "out")
    assert done.returncode == 0, done.stderr
    assert not differing(load_file(tmp_path / "out" / "model.safetensors"), once)
    assert [path.name for path in tmp_path.iterdir()] == ["out"]
