import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForImageTextToText

from interlace.data.chat import load_records
from interlace.data.collate import IGNORED
from interlace.decoder.layers import decoder_layers, num_layers
from interlace.decoder.load import load_model, load_processor
from interlace.errors import InputError
from interlace.training.batches import FAILURES, TrainingCollator, TrainingDataset
from interlace.training.freeze import apply_plan
from interlace.training.run import finetune
from interlace.training.trainer import LayerTrainer
from tests.tiny import make_tiny_checkpoint, make_tiny_samples

ROOT = Path(__file__).resolve().parents[2]
SETTINGS = {
    "epochs": 1,
    "learning_rate": 1e-2,
    "warmup_ratio": 0.03,
    "weight_decay": 0.0,
    "max_grad_norm": 1.0,
    "micro_batch": 4,
    "accumulation": 1,
    "precision": "float32",
    "gradient_checkpointing": False,
    "max_length": 512,
    "min_pixels": None,
    "max_pixels": None,
    "workers": 0,
    "deepspeed": str(ROOT / "config/deepspeed/zero3.json"),
    "processes": 1,
}
PLAN = {"method": "interlace", "ratio": 25, "num_layers": 6, "drop": [1], "tune": [2, 4]}
PREFIX = "model.language_model.layers."


@pytest.fixture(scope="module", autouse=True)
def one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def given(tmp_path_factory):
    root = tmp_path_factory.mktemp("training")
    make_tiny_checkpoint(root / "base", tied=False)
    make_tiny_samples(root / "samples")
    (root / "plan.json").write_text(json.dumps({**PLAN, "num_dropped": 1, "freeze": [0, 3, 5]}))
    return root


def tuned(given, out, samples="samples", seed=0, **changes):
    finetune(
        given / "base",
        given / "plan.json",
        given / samples,
        out,
        {**SETTINGS, **changes},
        model="tiny",
        variant="interlace-25-ft",
        seed=seed,
    )
    return load_file(out / "model.safetensors")


@pytest.fixture(scope="module")
def once(given):
    return tuned(given, given / "once")


def differing(left, right):
    assert left.keys() == right.keys()
    return {name for name in left if not torch.equal(left[name], right[name])}


def test_exactly_the_planned_layers_change(given, once):
    base = load_file(given / "base" / "model.safetensors")
    renumbered = {}
    for name, weight in base.items():
        if name.startswith(PREFIX):
            index, rest = name.removeprefix(PREFIX).split(".", 1)
            if index == "1":
                continue
            name = f"{PREFIX}{int(index) - (int(index) > 1)}.{rest}"
        renumbered[name] = weight
    changed = differing(once, renumbered)
    assert changed == {name for name in once if name.startswith((f"{PREFIX}1.", f"{PREFIX}3."))}


def test_the_record_says_what_was_done(given, once):
    record = json.loads((given / "once" / "interlace.json").read_text())
    training = record["training"]
    rows = [json.loads(line) for line in (given / "once" / "training.jsonl").open()]
    assert [row["step"] for row in rows] == list(range(1, 7))  # 24 samples in batches of 4
    assert training["steps"] == 6
    assert training["loss_first"] == rows[0]["loss"]
    assert training["loss_last"] == rows[-1]["loss"] < rows[0]["loss"]
    assert all(row["grad_norm"] > 0 for row in rows)
    assert training["num_trained_tensors"] == 22 == len(training["trained_parameters"])
    assert training["counts"]["samples"] == 24
    assert training["failures"] == []
    assert record["num_layers"] == num_layers(given / "once") == 5
    assert record["plan"]["drop"] == [1]
    AutoModelForImageTextToText.from_pretrained(given / "once")
    assert not list(given.glob(".once*"))


def test_the_same_seed_gives_the_same_weights(given, once, tmp_path):
    assert not differing(tuned(given, tmp_path / "again"), once)
    assert differing(tuned(given, tmp_path / "other", seed=1), once)


@pytest.mark.parametrize(
    "changes", [{"deepspeed": None}, {"gradient_checkpointing": True}], ids=lambda c: next(iter(c))
)
def test_zero3_and_checkpointing_do_not_change_the_mathematics(given, once, tmp_path, changes):
    other = tuned(given, tmp_path / "out", **changes)
    for name, weight in once.items():
        torch.testing.assert_close(other[name], weight, atol=1e-5, rtol=0)


def test_accumulation_averages_micro_batches(given, once, tmp_path):
    tuned(given, tmp_path / "out", micro_batch=2, accumulation=2)
    training = json.loads((tmp_path / "out" / "interlace.json").read_text())["training"]
    assert training["steps"] == 6
    rows = [json.loads(line) for line in (tmp_path / "out" / "training.jsonl").open()]
    single = [json.loads(line) for line in (given / "once" / "training.jsonl").open()]
    # Not the same loss (means of means), but near: a sum instead of a mean would be twice that.
    assert rows[0]["loss"] == pytest.approx(single[0]["loss"], rel=0.2)


def test_nothing_is_compiled_and_no_port_is_opened(given, once):
    import deepspeed

    assert deepspeed.comm.comm.cdb.shm_comm_op is None
    assert os.environ["MASTER_PORT"] == "0"


def test_without_tuning_layers_are_only_dropped(given, tmp_path):
    dropped = tuned(given, tmp_path / "out", tune=False)
    model = load_model(given / "base")
    apply_plan(model, [1], [])
    assert not differing(dropped, dict(model.state_dict()))
    assert json.loads((tmp_path / "out" / "interlace.json").read_text())["training"] is None


def spoil(samples, out, count):
    """Copy samples; the images of the first `count` rows with images no longer decode."""
    shutil.copytree(samples, out)
    for file in sorted(out.glob("tiny_*/*.parquet")):
        rows = pq.read_table(file).to_pylist()
        for row in rows:
            if row["images"] and count:
                row["images"][0]["bytes"] = b"no image"
                count -= 1
        pq.write_table(pa.Table.from_pylist(rows, schema=pq.read_schema(file)), file)


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


def test_the_tied_head_is_frozen(tmp_path):
    model = load_model(make_tiny_checkpoint(tmp_path / "tied", tied=True))
    names = apply_plan(model, [0], [5])
    trainable = {id(weight) for weight in model.parameters() if weight.requires_grad}
    assert trainable == {id(weight) for weight in decoder_layers(model)[4].parameters()}
    assert all(name.startswith(f"{PREFIX}4.") for name in names)


def test_a_blank_row_takes_text_through_the_vision_tower_but_not_the_loss(given):
    model, processor = load_model(given / "base"), load_processor(given / "base")
    text = [record for record in load_records(given / "samples") if record.subset == "text_tiny"]
    plain = TrainingCollator(processor, None, always_image=False)(text[:2])
    padded = TrainingCollator(processor, None, always_image=True)(text[:2])
    assert "pixel_values" not in plain
    assert "pixel_values" in padded
    assert plain.pop(FAILURES) == padded.pop(FAILURES) == []
    with torch.no_grad():
        assert model(**plain).loss == pytest.approx(float(model(**padded).loss), rel=1e-5)
    nothing = TrainingCollator(processor, None, always_image=False)(["a: broken", "b: broken"])
    assert nothing[FAILURES] == ["a: broken", "b: broken"]
    assert (nothing["labels"] == IGNORED).all()


def test_undecodable_images_come_as_names(given, tmp_path):
    spoil(given / "samples", tmp_path / "spoiled", 1)
    dataset = TrainingDataset(load_records(tmp_path / "spoiled"))
    assert sum(isinstance(dataset[i], str) for i in range(len(dataset))) == 1


def test_an_interrupted_run_goes_on_to_the_same_weights(given, once, tmp_path, monkeypatch):
    step = LayerTrainer.training_step

    def interrupted(self, *args, **kwargs):
        if self.state.global_step == 3:
            raise KeyboardInterrupt
        return step(self, *args, **kwargs)

    monkeypatch.setattr(LayerTrainer, "training_step", interrupted)
    with pytest.raises(KeyboardInterrupt):
        tuned(given, tmp_path / "out", save_steps=2)
    assert [path.name for path in tmp_path.glob(".out*/*")] == ["checkpoint-2"]
    monkeypatch.setattr(LayerTrainer, "training_step", step)
    assert not differing(tuned(given, tmp_path / "out", save_steps=2), once)
    rows = [json.loads(line)["step"] for line in (tmp_path / "out" / "training.jsonl").open()]
    assert rows == [1, 2, 3, 4, 5, 6]
    assert not list(tmp_path.glob(".out*"))


@pytest.mark.slow
def test_two_ranks_share_the_data(given, tmp_path):
    # One rank meets batches of text only where the other has images.
    job = {
        "base": str(given / "base"), "plan": str(given / "plan.json"),
        "samples": str(given / "samples"), "out": str(tmp_path / "out"),
        "settings": {**SETTINGS, "processes": 2, "micro_batch": 2},
    }  # fmt: skip
    code = (
        "import json, sys; from interlace.training.run import finetune;"
        "finetune(**json.loads(sys.argv[1]), model='tiny', variant='v', seed=0)"
    )
    subprocess.run([sys.executable, "-c", code, json.dumps(job)], check=True, timeout=300)
    record = json.loads((tmp_path / "out" / "interlace.json").read_text())
    assert record["training"]["world_size"] == 2
    assert record["training"]["steps"] == 6
    assert record["training"]["counts"]["samples"] == 24  # each sample once, not once per rank
