"""What a tuned checkpoint is: the planned layers changed and nothing else, and a record of it."""

import json
import os
import re
from pathlib import Path

import pyarrow.parquet as pq
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
    spoil,
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
    plan = {**PLAN, "num_dropped": 1, "freeze": [0, 3, 5], "reading": "released"}
    (given / "released.json").write_text(json.dumps(plan))
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
    with pytest.raises(InputError, match="is a plan for 6 layers"):
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


def test_a_damaged_image_is_left_out_by_name(given, tmp_path, capfd):
    spoil(given / "samples", given / "spoiled", 1)
    tuned(given, tmp_path / "out", samples="spoiled")
    record = json.loads((tmp_path / "out" / "interlace.json").read_text())
    (failure,) = record["training"]["failures"]
    assert failure.startswith("tiny_pairs(a+b)/")
    assert failure in capfd.readouterr().err
    assert record["training"]["counts"]["failed"] == 1
    assert record["provenance"]["num_samples"] == 23


def test_too_many_damaged_images_end_the_run(given, tmp_path):
    spoil(given / "samples", given / "ruined", 12)
    with pytest.raises(InputError, match="of 24 samples cannot be used"):
        tuned(given, tmp_path / "out", samples="ruined")
    assert not (tmp_path / "out").exists()
    tuned(given, tmp_path / "lax", samples="ruined", max_failed_share=0.6)
    assert training(tmp_path / "lax")["counts"]["failed"] == 12


def without_finite_loss(monkeypatch, name):
    """Let the loss of the sample `name` be NaN."""
    from interlace.training.setup import Objective

    call = Objective.__call__

    def poisoned(self, model, batch):
        if name in batch.ids:
            owner = batch.ids.index(name)
            batch.weights = batch.weights.masked_fill(batch.owners == owner, torch.nan)
            loss = call(self, model, batch)
            told = batch.owners[:, 1:][batch.labels[:, 1:] != -100] == owner
            self.exchange.losses = self.exchange.losses.masked_fill(told, torch.nan)
            return loss
        return call(self, model, batch)

    monkeypatch.setattr(Objective, "__call__", poisoned)


@pytest.mark.parametrize("recipe", ["fast", "paper"])
def test_a_loss_that_is_nan_is_counted_named_and_left_out(given, tmp_path, monkeypatch, recipe):
    name = "tiny_vqa/train-00000-of-00002/1"
    without_finite_loss(monkeypatch, name)
    weights = tuned(
        given, tmp_path / "out", recipe=recipe, levers={"sharding": "none"}, max_failed_share=0.3,
        pack_tokens=16,
    )  # fmt: skip
    assert all(weight.isfinite().all() for weight in weights.values())
    done = training(tmp_path / "out")
    first, *others = done["failures"]
    assert first.startswith(f"{name}: the loss is nan at step ")
    assert all(f"left out together with {name}" in line for line in others)
    assert done["counts"]["failed"] == len(done["failures"])
    told = losses(tmp_path / "out")
    # A padded batch is all of a step; of the packed rows the others remain.
    assert (None in told, len(others)) == ((True, 3) if recipe == "paper" else (False, 0))
    assert all(loss is None or 4 < loss < 8 for loss in told)


def test_under_deepspeed_a_loss_that_is_nan_ends_the_run_by_name(given, tmp_path, monkeypatch):
    without_finite_loss(monkeypatch, "tiny_vqa/train-00000-of-00002/1")
    with pytest.raises(RuntimeError, match="tiny_vqa/train-00000-of-00002/1: the loss is nan at"):
        tuned(given, tmp_path / "out", recipe="paper")


@pytest.mark.parametrize("recipe", ["fast", "paper"])
def test_a_step_of_which_nothing_can_be_used_is_one_without_a_gradient(given, tmp_path, recipe):
    spoil(given / "samples", tmp_path / "spoiled", 12)
    runs = {
        name: tuned(
            given, tmp_path / name, samples=tmp_path / "spoiled", micro_batch=1, recipe=name,
            max_failed_share=1, learning_rate=1e-3,
        )
        for name in (recipe, "fast")
    }  # fmt: skip
    for name, weight in runs["fast"].items():
        torch.testing.assert_close(runs[recipe][name], weight, atol=1e-5, rtol=0)
    done, told = training(tmp_path / recipe), losses(tmp_path / recipe)
    assert done["counts"]["failed"] == told.count(None) == 12
    shown = [loss for loss in told if loss is not None]
    assert all(4 < loss < 8 for loss in shown)
    assert (done["loss_first"], done["loss_last"]) == (shown[0], shown[-1])


@pytest.mark.parametrize("recipe", ["fast", "paper"])
def test_a_step_is_the_mean_of_the_groups_that_are_left(given, tmp_path, recipe):
    """Groups without a usable sample are as if they had not been drawn, in loss and gradient."""
    spoil(given / "samples", tmp_path / "spoiled", 12)
    spoil(given / "samples", tmp_path / "good", 12)
    for file in (tmp_path / "good").glob("*/*.parquet"):
        table = pq.read_table(file)
        good = [
            all(one["bytes"] != b"no image" for one in row or ())
            for row in table["images"].to_pylist()
        ]
        pq.write_table(table.filter(good), file)
    runs = [
        tuned(
            given, tmp_path / f"of {name}", samples=tmp_path / name, recipe=recipe, micro_batch=1,
            accumulation=24, max_failed_share=1, learning_rate=1e-3, max_grad_norm=0.01,
        )
        for name in ("spoiled", "good")
    ]  # fmt: skip
    rows = [
        json.loads((tmp_path / f"of {name}/training.jsonl").read_text())
        for name in ("spoiled", "good")
    ]
    assert [row["samples"] for row in rows] == [12, 12]
    assert rows[0]["loss"] == pytest.approx(rows[1]["loss"], abs=1e-5)
    assert rows[0]["grad_norm"] == pytest.approx(rows[1]["grad_norm"], rel=1e-4)
    for name, weight in runs[1].items():
        torch.testing.assert_close(runs[0][name], weight, atol=1e-5, rtol=0)


def test_what_is_left_of_a_step_whose_loss_is_nan_keeps_its_size(given, tmp_path, monkeypatch):
    """One of four groups is left out: the gradient is that of the other three, as the loss is."""
    changes = {"micro_batch": 1, "accumulation": 24, "levers": {"packing": False}}
    tuned(given, tmp_path / "whole", **changes)
    without_finite_loss(monkeypatch, "tiny_vqa/train-00000-of-00002/1")
    tuned(given, tmp_path / "out", **changes)
    norms = [
        json.loads((tmp_path / name / "training.jsonl").read_text())["grad_norm"]
        for name in ("whole", "out")
    ]
    assert norms[1] == pytest.approx(norms[0], rel=0.2)
    monkeypatch.setattr(LayerTrainer, "_of_what_is_left", lambda self, loss, factor: loss * factor)
    tuned(given, tmp_path / "small", **changes)
    small = json.loads((tmp_path / "small/training.jsonl").read_text())["grad_norm"]
    assert norms[1] == pytest.approx(small * 24 / 23, rel=1e-4)


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
    import shutil

    copyfile = shutil.copyfile

    def full(source, target, **options):
        if "tfevents" in str(source):
            raise OSError("No space left on device")
        return copyfile(source, target, **options)

    monkeypatch.setattr(shutil, "copyfile", full)
    with pytest.raises(OSError, match="No space"):
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


def test_a_sample_that_fails_in_every_epoch_counts_once(given, tmp_path):
    spoil(given / "samples", tmp_path / "spoiled", 1)
    tuned(given, tmp_path / "out", samples=tmp_path / "spoiled", epochs=3)
    assert training(tmp_path / "out")["counts"]["failed"] == 1


def test_without_a_sample_that_can_be_used_there_is_no_checkpoint(given, tmp_path):
    with pytest.raises(InputError, match="no sample could be used"):
        tuned(given, tmp_path / "out", max_length=3, max_failed_share=1)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("seed", range(4))
def test_a_checkpoint_in_16_bits_gives_back_what_was_trained(tmp_path, seed, monkeypatch):
    """The reload's logits were checked against a model whose rotary frequencies were rounded too."""
    import interlace.decoder.checkpoint as checkpoint

    seen = []
    verify = checkpoint.verify_checkpoint
    monkeypatch.setattr(
        checkpoint, "verify_checkpoint", lambda *a, **k: seen.append(verify(*a, **k))
    )
    given = make_inputs(tmp_path, seed=seed)
    weights = tuned(given, tmp_path / "out", precision="bfloat16", epochs=0.5)
    assert {weight.dtype for weight in weights.values()} == {torch.bfloat16}
    assert seen == [0.0]


def test_losses_that_stay_nan_end_the_run(given, tmp_path):
    with pytest.raises(InputError, match=r"the loss is nan at step \d+; .*learning_rate"):
        tuned(given, tmp_path / "out", learning_rate=1e30, max_grad_norm=1e30)


def test_several_processes_need_sharding(given, tmp_path):
    with pytest.raises(InputError, match="sharding: none is for one process"):
        tuned(given, tmp_path / "out", processes=2, levers={"sharding": "none"})


def test_a_run_of_its_own_process_leaves_nothing_but_the_checkpoint(given, once, tmp_path):
    done = in_process(given, tmp_path / "out")
    assert done.returncode == 0, done.stderr
    assert not differing(load_file(tmp_path / "out" / "model.safetensors"), once)
    assert [path.name for path in tmp_path.iterdir()] == ["out"]
