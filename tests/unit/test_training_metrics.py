"""What is told of a step: rates by a clock that starts with it, and numbers that mean something."""

import json
import math
import types

import pytest

from interlace.errors import InputError
from interlace.training.metrics import Checkpoints, Exchange, MetricLines
from interlace.training.trainer import LayerTrainer


def test_the_first_step_is_not_measured_from_before_its_start():
    clock = iter([0.0, 500.0, 501.0, 502.0])
    exchange = Exchange(1, 1, clock=lambda: next(clock))
    Checkpoints(exchange, wanted=True).on_train_begin(None, None, None)
    step = types.SimpleNamespace(
        micro_batches=[1], samples=8, tokens=40, supervised=4, groups_left=1, failures=[]
    )
    exchange.begin_step(1, step)
    assert not exchange.save_due
    assert exchange.end_step()["samples_per_s"] == 4.0


def test_lines_have_no_epoch_but_what_was_done_of_one(tmp_path):
    state = types.SimpleNamespace(
        is_world_process_zero=True, global_step=1, log_history=[{"step": 1, "loss": 1, "epoch": 1}]
    )
    lines = MetricLines(tmp_path / "training.jsonl")
    lines.on_train_begin(None, state, None)
    lines.on_log(None, state, None, logs={"loss": 2, "epoch": 0.125, "epoch_done": 1.0})
    told = [json.loads(line) for line in (tmp_path / "training.jsonl").open()]
    assert told == [{"step": 1, "loss": 1}, {"step": 1, "loss": 2, "epoch_done": 1.0}]


@pytest.mark.parametrize("norm", [math.nan, math.inf])
def test_a_gradient_that_is_not_finite_ends_the_run_with_a_way_out(norm):
    trainer = types.SimpleNamespace(state=types.SimpleNamespace(global_step=3))
    with pytest.raises(InputError, match=r"step 3: the gradient's norm is .*learning_rate"):
        LayerTrainer.log(trainer, {"loss": 1.0, "grad_norm": norm})
