"""Several ranks under ZeRO-3 (gloo): disjoint data, uneven last steps, text beside images."""

import json

import pytest
import torch
from safetensors.torch import load_file

from tests.unit.training_runs import in_process, losses, make_inputs, spoil, training, tuned

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def given(tmp_path_factory):
    return make_inputs(tmp_path_factory.mktemp("ranks"))


@pytest.mark.parametrize("recipe", ["fast", "paper"])
@pytest.mark.parametrize("processes", [2, 3])
def test_ranks_do_the_steps_of_one_process(given, tmp_path, processes, recipe):
    # Twelve groups of 2: the last step has two or three of them, fewer than all ranks take; and one
    # rank meets text only where another has images.
    out = tmp_path / "out"
    changes = {"micro_batch": 2, "learning_rate": 1e-3}
    accumulation = 5 if processes == 2 else 3
    done = in_process(
        given, out, recipe=recipe, processes=processes, accumulation=accumulation, **changes
    )
    assert done.returncode == 0, done.stderr
    alone = tmp_path / "alone"
    tuned(given, alone, recipe="fast", accumulation=processes * accumulation, **changes)
    record = training(out)
    assert record["world_size"] == processes
    assert record["recipe"]["sharding"] == "zero3"
    assert record["counts"]["samples"] == 24  # each sample once, not once per rank
    assert losses(out) == pytest.approx(losses(alone), abs=1e-5)
    weights, expected = (load_file(path / "model.safetensors") for path in (out, alone))
    for name, weight in expected.items():
        torch.testing.assert_close(weights[name], weight, atol=1e-4, rtol=0)
    rows = [json.loads(line) for line in (out / "training.jsonl").open()]
    assert sum(row["samples"] for row in rows) == 24
    assert rows[-1]["samples"] < rows[0]["samples"]


def test_ranks_leave_out_a_group_as_one_process_does(given, tmp_path):
    """Groups of one, two a step, half of them spoilt: steps with two, one and none that are left."""
    spoil(given / "samples", tmp_path / "spoiled", 12)
    inputs = tmp_path / "given"
    inputs.mkdir()
    for name in ("base", "plan.json"):
        (inputs / name).symlink_to(given / name)
    (inputs / "samples").symlink_to(tmp_path / "spoiled")
    changes = {"micro_batch": 1, "learning_rate": 1e-3, "max_failed_share": 1}
    out, alone = tmp_path / "out", tmp_path / "alone"
    done = in_process(inputs, out, processes=2, accumulation=1, **changes)
    assert done.returncode == 0, done.stderr
    tuned(inputs, alone, accumulation=2, **changes)
    told, expected = losses(out), losses(alone)
    assert [loss is None for loss in told] == [loss is None for loss in expected]
    assert None in told
    assert [x for x in told if x] == pytest.approx([x for x in expected if x], abs=1e-5)


def test_ranks_go_on_from_a_checkpoint(given, tmp_path):
    """Rank 0 kills itself as soon as the third checkpoint is there."""
    changes = {"micro_batch": 2, "accumulation": 1, "processes": 2, "checkpoint_minutes": 0}
    whole = in_process(given, tmp_path / "whole", **changes)
    assert whole.returncode == 0, whole.stderr
    site = tmp_path / "site"
    site.mkdir()
    (site / "sitecustomize.py").write_text(
        "import os, signal, threading, time\n"
        "from pathlib import Path\n"
        "def watch():\n"
        f"    root = Path({str(tmp_path)!r})\n"
        "    while not list(root.glob('.out.trainer-*/zero3-*/checkpoint-3')):\n"
        "        time.sleep(0.002)\n"
        "    os.kill(os.getpid(), signal.SIGKILL)\n"
        "if os.environ.get('RANK') == '0':\n"
        "    threading.Thread(target=watch, daemon=True).start()\n"
    )
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", str(site))
        killed = in_process(given, tmp_path / "out", **changes)
    assert killed.returncode != 0
    assert list(tmp_path.glob(".out.trainer-*/zero3-*/checkpoint-*"))
    again = in_process(given, tmp_path / "out", **changes)
    assert again.returncode == 0, again.stderr
    weights, expected = (
        load_file(tmp_path / name / "model.safetensors") for name in ("out", "whole")
    )
    for name, weight in expected.items():
        torch.testing.assert_close(weights[name], weight, atol=0, rtol=0)


def test_failures_of_all_ranks_are_one_list(given, tmp_path):
    spoil(given / "samples", tmp_path / "spoiled", 4)
    changes = {"micro_batch": 1, "accumulation": 2, "processes": 2}
    inputs = tmp_path / "given"
    inputs.mkdir()
    for name in ("base", "plan.json"):
        (inputs / name).symlink_to(given / name)
    (inputs / "samples").symlink_to(tmp_path / "spoiled")
    refused = in_process(inputs, tmp_path / "out", **changes)
    assert refused.returncode != 0
    assert "of 24 samples cannot be used, first " in refused.stderr
    done = in_process(inputs, tmp_path / "out", max_failed_share=0.2, **changes)
    assert done.returncode == 0, done.stderr
    record = training(tmp_path / "out")
    assert record["counts"]["failed"] == len(record["failures"]) == 4
    assert record["counts"]["samples"] == 20
