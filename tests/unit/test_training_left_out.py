"""Samples that cannot be used: left out by name, and loss and gradient are those of the others."""

import json

import pyarrow.parquet as pq
import pytest
import torch

from interlace.data.chat import load_records
from interlace.data.collate import Collator
from interlace.decoder.load import load_processor
from interlace.errors import InputError
from interlace.training.trainer import LayerTrainer
from tests.unit.training_runs import losses, make_inputs, spoil, training, tuned


@pytest.fixture(scope="module")
def given(tmp_path_factory):
    return make_inputs(tmp_path_factory.mktemp("left_out"))


def test_a_damaged_image_is_left_out_by_name_and_once_in_three_epochs(given, tmp_path, capfd):
    spoil(given / "samples", given / "spoiled", 1)
    tuned(given, tmp_path / "out", samples="spoiled", epochs=3)
    record = json.loads((tmp_path / "out" / "interlace.json").read_text())
    (failure,) = record["training"]["failures"]
    assert failure.startswith("tiny_pairs(a+b)/")
    assert failure in capfd.readouterr().err
    assert record["training"]["counts"]["failed"] == 1
    assert record["provenance"]["num_samples"] == 23


def test_too_many_damaged_images_end_the_run(given, tmp_path):
    spoil(given / "samples", given / "ruined", 12)
    with pytest.raises(InputError, match="of 24 drawn samples cannot be used"):
        tuned(given, tmp_path / "out", samples="ruined")
    assert not (tmp_path / "out").exists()


def test_a_share_of_0_allows_for_none_and_any_above_it_for_one(given, tmp_path):
    spoil(given / "samples", tmp_path / "spoiled", 1)
    with pytest.raises(InputError, match="1 of 24 drawn samples cannot be used"):
        tuned(given, tmp_path / "none", samples=tmp_path / "spoiled", max_failed_share=0)
    tuned(given, tmp_path / "one", samples=tmp_path / "spoiled", max_failed_share=0.001)
    assert training(tmp_path / "one")["counts"]["failed"] == 1


def test_the_limit_is_a_share_of_the_samples_that_are_drawn(given, tmp_path):
    with pytest.raises(InputError, match="4 of 4 drawn samples cannot be used"):
        tuned(given, tmp_path / "out", epochs=1 / 6, max_length=3, max_failed_share=0.5)


def without_finite_loss(monkeypatch, name=None):
    """Let the loss of the sample `name` be NaN; of every one without a name."""
    from interlace.training.setup import Objective

    call = Objective.__call__

    def poisoned(self, model, batch):
        if name is None:
            batch.weights = batch.weights * torch.nan
        elif name in batch.ids:
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
    assert done["counts"]["dropped_not_finite"] == len(done["failures"])
    left = Collator(load_processor(given / "base"), 512)
    dropped = {line.partition(":")[0] for line in done["failures"]}
    left([record for record in load_records(given / "samples") if record.id not in dropped])
    for key in ("samples", "tokens", "supervised_tokens"):
        assert done["counts"][key] == left.counts[key] > 0
    told = losses(tmp_path / "out")
    # A padded batch is all of a step; of the packed rows the others remain.
    assert (None in told, len(others)) == ((True, 3) if recipe == "paper" else (False, 0))
    assert all(loss is None or 4 < loss < 8 for loss in told)


def test_under_deepspeed_a_loss_that_is_nan_ends_the_run_by_name(given, tmp_path, monkeypatch):
    without_finite_loss(monkeypatch, "tiny_vqa/train-00000-of-00002/1")
    with pytest.raises(InputError, match="tiny_vqa/train-00000-of-00002/1: the loss is nan at"):
        tuned(given, tmp_path / "out", recipe="paper")


def test_a_step_of_which_nothing_can_be_used_is_one_without_a_gradient(given, tmp_path):
    spoil(given / "samples", tmp_path / "spoiled", 12)
    runs = {
        name: tuned(
            given, tmp_path / name, samples=tmp_path / "spoiled", micro_batch=1, recipe=name,
            max_failed_share=1, learning_rate=1e-3,
        )
        for name in ("paper", "fast")
    }  # fmt: skip
    for name, weight in runs["fast"].items():
        torch.testing.assert_close(runs["paper"][name], weight, atol=1e-5, rtol=0)
    for name in runs:
        done, told = training(tmp_path / name), losses(tmp_path / name)
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


def test_without_a_sample_that_can_be_used_there_is_no_checkpoint(given, tmp_path):
    with pytest.raises(InputError, match="no sample could be used"):
        tuned(given, tmp_path / "out", max_length=3, max_failed_share=1)
    assert not (tmp_path / "out").exists()


def test_without_a_loss_that_is_finite_there_is_no_checkpoint(given, tmp_path, monkeypatch):
    without_finite_loss(monkeypatch)
    with pytest.raises(InputError, match="no step has a loss"):
        tuned(given, tmp_path / "out", max_failed_share=1)
    assert not (tmp_path / "out").exists()


def test_losses_that_stay_nan_end_the_run(given, tmp_path):
    with pytest.raises(InputError, match=r"the loss is nan at step \d+; .*learning_rate"):
        tuned(given, tmp_path / "out", learning_rate=1e30, max_grad_norm=1e30)
