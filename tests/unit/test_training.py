"""What a tuned checkpoint is: the planned layers changed and nothing else, and a record of it."""

import json
import os

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForImageTextToText

from interlace.decoder.layers import decoder_layers, num_layers
from interlace.decoder.load import load_model
from interlace.errors import InputError
from interlace.training.freeze import apply_plan
from interlace.training.run import finetune
from tests.tiny import make_tiny_checkpoint
from tests.unit.training_runs import (
    PLAN,
    PREFIX,
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
    from interlace.training.trainer import LayerTrainer

    step = LayerTrainer.training_step
    seen = []

    def watched(self, *args, **kwargs):
        (file,) = tmp_path.glob(".out.trainer-*/training.jsonl")
        seen.append([json.loads(line)["step"] for line in file.open()])
        assert list(file.parent.glob("tensorboard/events.*"))
        return step(self, *args, **kwargs)

    monkeypatch.setattr(LayerTrainer, "training_step", watched)
    tuned(given, tmp_path / "out")
    assert seen == [list(range(1, n)) for n in range(1, 7)]
    told = capfd.readouterr()
    assert "parameters in 2 layers (22 tensors: " in told.out
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
    without_finite_loss(monkeypatch, "tiny_vqa/train-00000-of-00002/1")
    weights = tuned(given, tmp_path / "out", recipe=recipe, levers={"sharding": "none"})
    assert all(weight.isfinite().all() for weight in weights.values())
    done = training(tmp_path / "out")
    assert done["counts"]["failed"] == 1
    (failure,) = done["failures"]
    assert failure.startswith("tiny_vqa/train-00000-of-00002/1: the loss is nan at step ")


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
