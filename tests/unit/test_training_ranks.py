"""Several ranks under ZeRO-3 (gloo): disjoint data, uneven last steps, text beside images."""

import json

import pytest
import torch

from tests.unit.training_runs import losses, make_inputs, spoil, training, tuned

pytestmark = pytest.mark.slow
GO_ON = {"micro_batch": 2, "accumulation": 1, "processes": 2, "checkpoint_minutes": 0}


@pytest.fixture(scope="module")
def given(tmp_path_factory):
    return make_inputs(tmp_path_factory.mktemp("ranks"))


@pytest.mark.parametrize(("processes", "recipe"), [(2, "paper"), (3, "fast")])
def test_ranks_do_the_steps_of_one_process(given, tmp_path, processes, recipe):
    # Twelve groups of 2: the last step has two or three of them, fewer than all ranks take; and one
    # rank meets text only where another has images.
    out = tmp_path / "out"
    changes = {"micro_batch": 2, "learning_rate": 1e-3}
    accumulation = 5 if processes == 2 else 3
    weights = tuned(
        given, out, recipe=recipe, processes=processes, accumulation=accumulation, **changes
    )
    alone = tmp_path / "alone"
    expected = tuned(given, alone, recipe="fast", accumulation=processes * accumulation, **changes)
    record = training(out)
    assert record["world_size"] == processes
    assert record["recipe"]["sharding"] == "zero3"
    assert record["counts"]["samples"] == 24  # each sample once, not once per rank
    assert losses(out) == pytest.approx(losses(alone), abs=1e-5)
    for name, weight in expected.items():
        torch.testing.assert_close(weights[name], weight, atol=1e-4, rtol=0)
    rows = [json.loads(line) for line in (out / "training.jsonl").open()]
    assert sum(row["samples"] for row in rows) == 24
    assert rows[-1]["samples"] < rows[0]["samples"]


def test_ranks_leave_out_a_group_as_one_process_does(given, tmp_path):
    """Groups of one, two a step, half of them spoilt: steps with two, one and none that are left."""
    samples = tmp_path / "spoiled"
    spoil(given / "samples", samples, 12)
    changes = {
        "samples": samples, "micro_batch": 1, "learning_rate": 1e-3, "max_failed_share": 1,
    }  # fmt: skip
    out, alone = tmp_path / "out", tmp_path / "alone"
    tuned(given, out, processes=2, accumulation=1, **changes)
    tuned(given, alone, accumulation=2, **changes)
    told, expected = losses(out), losses(alone)
    assert [loss is None for loss in told] == [loss is None for loss in expected]
    assert None in told
    assert [x for x in told if x] == pytest.approx([x for x in expected if x], abs=1e-5)
    record = training(out)  # the failures of all ranks are one list
    assert record["counts"]["failed"] == len(record["failures"]) == 12
    assert record["counts"]["samples"] == 12


@pytest.fixture(scope="module")
def whole(given):
    """The weights of a run of two ranks in one go."""
    return tuned(given, given / "whole", **GO_ON)


def test_ranks_go_on_from_a_checkpoint(given, whole, tmp_path):
    """Rank 0 kills itself as soon as the third checkpoint is there."""
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
        with pytest.raises(RuntimeError, match="training with 2 processes failed"):
            tuned(given, tmp_path / "out", **GO_ON)
    assert list(tmp_path.glob(".out.trainer-*/zero3-*/checkpoint-*"))
    weights = tuned(given, tmp_path / "out", **GO_ON)
    for name, weight in whole.items():
        torch.testing.assert_close(weights[name], weight, atol=0, rtol=0)
