"""The recipes `paper` and `fast`, and every lever alone: one mathematics, and tests that would tell."""

import json

import pytest
import torch

import interlace.training.batches as batches
import interlace.training.setup as setup
from interlace.data.collate import IGNORED
from interlace.errors import InputError
from interlace.training.recipe import RECIPES, resolve
from interlace.training.run import finetune
from tests.unit.training_runs import SETTINGS, in_process, losses, make_inputs, training, tuned

LEVERS = {
    "graph": "tuned",
    "checkpointing": "none",
    "head": "chunked",
    "packing": True,
    "sharding": "none",
}


@pytest.fixture(scope="module")
def given(tmp_path_factory):
    return make_inputs(tmp_path_factory.mktemp("recipes"))


@pytest.fixture(scope="module")
def paper(given):
    return tuned(given, given / "paper", recipe="paper")


def agree(left, right, atol):
    for name, weight in right.items():
        torch.testing.assert_close(left[name], weight, atol=atol, rtol=0)


def test_fifty_steps_of_both_recipes_end_in_the_same_weights(given, tmp_path):
    # 48 steps of 32 in 16s do not come of 24 samples: groups of 2, two a step, 8 1/3 epochs.
    changes = {"epochs": 50 / 6, "micro_batch": 2, "accumulation": 2, "learning_rate": 1e-3}
    runs = {
        name: tuned(given, tmp_path / name, recipe=name, **changes) for name in ("paper", "fast")
    }
    told = {name: losses(tmp_path / name) for name in runs}
    assert len(told["paper"]) == 50
    assert told["fast"] == pytest.approx(told["paper"], abs=1e-5)
    assert told["fast"][-1] < told["fast"][0]
    agree(runs["fast"], runs["paper"], 1e-4)
    rates = [
        json.loads(line)["learning_rate"] for line in (tmp_path / "fast/training.jsonl").open()
    ]
    assert rates == pytest.approx(
        [json.loads(line)["learning_rate"] for line in (tmp_path / "paper/training.jsonl").open()]
    )
    assert max(rates) == rates[2] == 1e-3  # warm-up of 3 % of 50 steps
    used = {name: training(tmp_path / name)["recipe"] for name in runs}
    expected = {"graph": "all", "checkpointing": "all", "head": "full", "packing": False}
    assert used["paper"].items() >= {**expected, "sharding": "zero3"}.items()
    assert used["fast"].items() >= LEVERS.items()


@pytest.mark.parametrize("lever", LEVERS)
def test_every_lever_alone_changes_nothing_but_cost(given, paper, tmp_path, lever):
    levers = {lever: LEVERS[lever]}
    if lever == "packing":
        levers["attention"] = "auto"
    agree(tuned(given, tmp_path / "out", recipe="paper", levers=levers), paper, 1e-5)
    used = training(tmp_path / "out")["recipe"]
    assert used[lever] == LEVERS[lever]
    assert used.items() >= {"name": "paper", **RECIPES["paper"].levers(), **levers}.items() - {
        ("attention", "auto")
    }
    assert losses(tmp_path / "out") == pytest.approx(losses(given / "paper"), abs=1e-5)


@pytest.mark.parametrize(
    "levers",
    [
        {"checkpointing": "tuned"},
        {"checkpointing": "all", "graph": "all"},
        {"head": "supervised"},
        {"head": "full"},
        {"attention": "sdpa"},
        {"sharding": "zero3"},
        {"packing": False},
    ],
    ids=lambda levers: ",".join(levers.values()) if "packing" not in levers else "padded",
)
def test_so_does_every_lever_of_the_fast_recipe(given, paper, tmp_path, levers):
    agree(tuned(given, tmp_path / "out", levers=levers), paper, 1e-5)
    assert losses(tmp_path / "out") == pytest.approx(losses(given / "paper"), abs=1e-5)


@pytest.mark.parametrize(("graph", "needed"), [("tuned", False), ("all", True)])
def test_the_graph_begins_where_the_lever_says(given, tmp_path, monkeypatch, graph, needed):
    from transformers.models.qwen3_vl.modeling_qwen3_vl import Qwen3VLTextDecoderLayer

    seen: dict[int, bool] = {}
    forward = Qwen3VLTextDecoderLayer.forward

    def watched(self, hidden_states, *args, **kwargs):
        if torch.is_grad_enabled():
            seen[self.self_attn.layer_idx] = hidden_states.requires_grad
        return forward(self, hidden_states, *args, **kwargs)

    monkeypatch.setattr(Qwen3VLTextDecoderLayer, "forward", watched)
    tuned(given, tmp_path / "out", levers={"graph": graph}, epochs=1 / 6)
    # Layers 2 and 4 of the dense model are tuned: 1 and 3 of what is left.
    assert seen == {0: needed, 1: needed, 2: True, 3: True, 4: True}


def test_rows_of_any_length_give_the_same_weights(given, paper, tmp_path):
    for tokens in (16, 10_000):
        agree(tuned(given, tmp_path / str(tokens), pack_tokens=tokens), paper, 1e-5)


def test_a_step_is_the_mean_of_its_groups_means(given, tmp_path):
    """Against the definition, computed from each sample alone."""
    from interlace.data.chat import load_records
    from interlace.data.collate import encode
    from interlace.decoder.load import load_model, load_processor
    from interlace.training.freeze import apply_plan
    from interlace.training.order import StepSampler

    tuned(given, tmp_path / "out", micro_batch=3, accumulation=2)
    model = load_model(given / "base")
    apply_plan(model, [1], [])
    processor = load_processor(given / "base")
    records = load_records(given / "samples")
    first = next(iter(StepSampler(len(records), 3, 2, 1, seed=0)))
    sums: dict[int, list[float]] = {0: [0.0, 0], 1: [0.0, 0]}
    for slot in first:
        sample = encode(records[slot.index], processor)
        labels = sample.pop("labels")[:, 1:]
        with torch.no_grad():
            logits = model(**sample).logits[:, :-1]
        picked = labels != IGNORED
        loss = torch.nn.functional.cross_entropy(logits[picked], labels[picked], reduction="sum")
        sums[slot.group][0] += float(loss)
        sums[slot.group][1] += int(picked.sum())
    mean = sum(total / count for total, count in sums.values()) / 2
    assert losses(tmp_path / "out")[0] == pytest.approx(mean, abs=1e-5)


# Negative controls: each of these mistakes must show in the comparison above.


def test_the_comparison_notices_attention_across_samples(given, paper, tmp_path, monkeypatch):
    def one_sample(self, starts):
        set_as_ever(self, torch.stack([starts[0], starts[-1]]))

    set_as_ever = setup.PackedAttention.set
    monkeypatch.setattr(setup.PackedAttention, "set", one_sample)
    tuned(given, tmp_path / "out")
    assert losses(tmp_path / "out")[0] != pytest.approx(losses(given / "paper")[0], abs=1e-4)


def test_the_comparison_notices_shifted_labels(given, paper, tmp_path, monkeypatch):
    expect = setup.SupervisedHead.expect

    def shifted(self, labels, weights, criterion=None):
        expect(self, labels.roll(1, dims=1), weights.roll(1, dims=1), criterion)

    monkeypatch.setattr(setup.SupervisedHead, "expect", shifted)
    tuned(given, tmp_path / "out")
    assert losses(tmp_path / "out")[0] != pytest.approx(losses(given / "paper")[0], abs=1e-2)


def test_the_comparison_notices_a_mask_on_the_questions(given, paper, tmp_path, monkeypatch):
    weights = batches._weights

    def everything(labels, weight):
        return weights(torch.where(labels == IGNORED, 0, labels), weight)

    def unmasked(self, record, collator):
        sample = encoded(self, record, collator)
        return {**sample, "labels": sample["input_ids"].clone()}

    encoded = batches.StepCollator._encoded
    monkeypatch.setattr(batches.StepCollator, "_encoded", unmasked)
    monkeypatch.setattr(batches, "_weights", everything)
    tuned(given, tmp_path / "out")
    assert losses(tmp_path / "out")[0] != pytest.approx(losses(given / "paper")[0], abs=1e-2)


def test_the_comparison_notices_the_wrong_layer(given, paper, tmp_path, monkeypatch):
    import interlace.training.tune as tune

    apply_plan = tune.apply_plan
    monkeypatch.setattr(
        tune, "apply_plan", lambda model, drop, tune, head: apply_plan(model, drop, [3, 4])
    )
    wrong = tuned(given, tmp_path / "out")
    with pytest.raises(AssertionError):
        agree(wrong, paper, 1e-4)


def test_levers_that_exclude_each_other_are_refused():
    with pytest.raises(InputError, match="sharding: none is for one process, but there are 4"):
        resolve({"levers": {"sharding": "none"}, "processes": 2, "nodes": 2})
    with pytest.raises(InputError, match="compile: layers that ZeRO-3 gathers"):
        resolve({"recipe": "paper", "levers": {"compile": True}})
    assert resolve({"levers": {"head": None}}) == RECIPES["fast"] == resolve({})


@pytest.mark.slow
def test_compiled_layers_do_the_same(given, paper, tmp_path):
    done = in_process(given, tmp_path / "out", levers={"compile": True}, timeout=600)
    assert done.returncode == 0, done.stderr
    assert losses(tmp_path / "out") == pytest.approx(losses(given / "paper"), abs=1e-4)


@pytest.mark.parametrize(("loss", "on"), [("kd", "logits"), ("ce+kd", "hidden")])
def test_distillation_learns_from_the_dense_model(given, paper, tmp_path, loss, on):
    kd = {"match": on, "temperature": 2.0, "weight": 0.5}
    plain = tuned(given, tmp_path / "out", loss=loss, kd=kd, epochs=4)
    padded = tuned(
        given, tmp_path / "padded", loss=loss, kd=kd, epochs=4,
        levers={"packing": False, "head": "full", "checkpointing": "tuned"},
    )  # fmt: skip
    agree(padded, plain, 1e-4)
    told = losses(tmp_path / "out")
    assert sum(told[-6:]) < 0.9 * sum(told[:6])
    assert told[0] != pytest.approx(losses(given / "paper")[0], abs=1e-3)


def test_a_missing_deepspeed_file_is_named(given, tmp_path):
    with pytest.raises(InputError, match=r"no-such\.json"):
        finetune(
            given / "base", given / "plan.json", given / "samples", tmp_path / "out",
            {**SETTINGS, "recipe": "paper", "deepspeed": "no-such.json"},
            model="tiny", variant="v", seed=0,
        )  # fmt: skip
