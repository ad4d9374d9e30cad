"""What is settled before a model is loaded: what its family, the machine and the memory allow."""

import json

import pytest
import torch

import interlace.training.fit as fitting
import interlace.training.setup as setup
import interlace.training.tune as tune
from interlace.config import _check_finetune
from interlace.errors import InputError
from interlace.training import distributed
from interlace.training.fit import fit_memory, settle
from interlace.training.out_of_memory import MicroBatchMemory
from interlace.training.recipe import RECIPES, of_the_weights, resolve
from interlace.training.run import finetune
from tests.tiny_families import tiny_model, tiny_processor
from tests.unit.training_runs import PLAN, SETTINGS, make_inputs, training, tuned


@pytest.fixture(scope="module")
def given(tmp_path_factory):
    return make_inputs(tmp_path_factory.mktemp("fit"))


@pytest.fixture(scope="module")
def gemma3(given):
    """A family whose samples do not share rows."""
    tiny_model("gemma3").save_pretrained(given / "gemma3")
    tiny_processor("gemma3").save_pretrained(given / "gemma3")
    return given / "gemma3"


def fitted(given, world_size=1, base=None, kept=None, **changes):
    settings = {**SETTINGS, **changes}
    job = {
        "base": str(base or given / "base"), "samples": str(given / "samples"),
        "settings": settings,
    }  # fmt: skip
    none = MicroBatchMemory(given / "none")
    return fit_memory(job, {"drop": [1], "tune": [2, 4]}, False, world_size, none, kept)


@pytest.mark.parametrize("several", [{"processes": 2}, {"nodes": 2}])
@pytest.mark.parametrize("loss", ["kd", "ce+kd"])
def test_distillation_is_for_one_process(given, several, loss):
    for refuse in (resolve, _check_finetune):
        with pytest.raises(InputError, match=rf"finetune.loss: {loss.replace('+', '.')} .*2 proc"):
            refuse({**SETTINGS, **several, "loss": loss})
        refuse({**SETTINGS, "loss": loss})
    with pytest.raises(InputError, match=r"finetune\.loss"):
        fitted(given, world_size=2, loss=loss)
    assert fitted(given, loss=loss).recipe.sharding == "none"


def test_several_ranks_are_never_trained_without_deepspeed(given, monkeypatch, tmp_path):
    monkeypatch.setattr(distributed, "world", lambda: (2, 0))
    fit = fitted(given, levers={"sharding": "none"})
    job = {"settings": SETTINGS, "seed": 0, "variant": "v", "base": str(given / "base")}
    with pytest.raises(AssertionError, match="several ranks"):
        tune._make_trainer(job, PLAN, fit, tmp_path, None)


def test_only_what_decides_the_weights_is_compared():
    same = {
        "recipe": "paper", "levers": {"sharding": "none"}, "workers": 3, "pack_tokens": 9,
        "deepspeed": "x", "deepspeed_offload": "y", "checkpoint_minutes": 1,
        "max_failed_share": 1.0, "kd": {},
    }  # fmt: skip
    first = of_the_weights(SETTINGS)
    assert of_the_weights(SETTINGS | same) == first
    assert repr(of_the_weights(dict(reversed(SETTINGS.items())))) == repr(first)
    assert of_the_weights(SETTINGS | {"processes": 4}) == of_the_weights(
        SETTINGS | {"processes": 2, "nodes": 2}
    )
    other = [
        {"processes": 2},
        {"loss": "kd"},
        {"epochs": 2},
        {"micro_batch": 5},
        {"precision": "x"},
    ]
    for change in other:
        assert of_the_weights(SETTINGS | change) != first, change
    kd = SETTINGS | {"loss": "kd"}
    assert of_the_weights(kd) != of_the_weights(kd | {"kd": {"temperature": 1.0}})


def test_what_cannot_be_packed_is_not_estimated_as_packed(given, gemma3):
    fit = fitted(given, base=gemma3, micro_batch=16)
    padded = fitted(given, base=gemma3, micro_batch=16, levers={"packing": False})
    assert not fit.recipe.packing
    assert fit.configured == 16
    assert fit.estimate == padded.estimate
    assert [note.split(",")[0] for note in fit.notes] == ["packing: off"]
    assert fit.notes[0] in fit.lines()
    assert padded.notes == []


def test_the_advice_is_for_padded_batches_where_nothing_is_packed(
    given, gemma3, tmp_path, monkeypatch
):
    call = setup.Objective.__call__

    def limited(self, model, batch):
        if len(batch.labels) > 4:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 5.00 GiB.")
        return call(self, model, batch)

    monkeypatch.setattr(setup.Objective, "__call__", limited)
    (tmp_path / "plan.json").write_text(json.dumps({**PLAN, "num_dropped": 1, "freeze": [0, 3, 5]}))
    lines = []
    while not (tmp_path / "out").exists():
        try:
            finetune(
                gemma3, tmp_path / "plan.json", given / "samples", tmp_path / "out",
                {**SETTINGS, "micro_batch": 8}, model="tiny", variant="v", seed=0,
            )  # fmt: skip
        except InputError as error:
            lines.append(str(error))
    assert len(lines) == 1
    assert "the next attempt takes 4 samples in place of 8" in lines[0]
    assert training(tmp_path / "out")["recipe"]["notes"][0].startswith("packing: off, gemma3")


def test_attention_of_rows_that_are_not_packed_is_noted(given):
    for levers in ({"packing": False, "attention": "flex_attention"}, {"attention": "varlen"}):
        recipe = "paper" if "packing" not in levers else "fast"
        fit = fitted(given, recipe=recipe, levers=levers)
        assert fit.recipe.attention == "sdpa"
        assert fit.notes == [f"attention: sdpa, {levers['attention']} is for packed rows"]
    assert fitted(given, recipe="paper").notes == fitted(given).notes == []


@pytest.mark.skipif(torch.cuda.is_available(), reason="a GPU has them")
@pytest.mark.parametrize(
    ("levers", "words"),
    [
        ({"attention": "flex_attention"}, "levers.attention: flex_attention: it has no backward"),
        ({"attention": "flash_attention_2"}, "levers.attention: flash_attention_2: flash_attn is"),
        ({"head": "liger"}, "levers.head: liger needs a GPU"),
    ],
)
def test_what_the_machine_lacks_is_said_before_a_model_is_loaded(
    given, tmp_path, monkeypatch, levers, words
):
    monkeypatch.setattr(tune, "load_model", None)
    with pytest.raises(InputError, match=words):
        tuned(given, tmp_path / "out", levers=levers)


def test_stored_features_that_a_family_cannot_have_are_noted(gemma3):
    from transformers import AutoConfig

    recipe, notes = settle(
        resolve({"levers": {"vision": "cached"}}), AutoConfig.from_pretrained(gemma3)
    )
    assert recipe.vision == "live"
    assert notes[0].startswith("vision: live, vision features are stored for")


def test_what_zero3_gathers_is_not_compiled(given, monkeypatch):
    compiled = {"levers": {"compile": True}}
    assert fitted(given, **compiled).recipe.compile
    for refused in ({"processes": 2}, {"recipe": "paper"}):
        with pytest.raises(InputError, match=r"finetune\.levers\.compile: layers that ZeRO-3"):
            resolve({**SETTINGS, **refused, **compiled})
    off = ["compile: off, layers that ZeRO-3 gathers are not compiled"]
    fit = fitted(given, kept="zero3_offload", **compiled)
    assert not fit.recipe.compile
    assert fit.notes[1:] == off
    choose = fitting.memory.choose_sharding
    monkeypatch.setattr(
        fitting.memory, "choose_sharding", lambda *a: choose(*a[:3], "zero3_offload", *a[4:])
    )
    fit = fitted(given, **compiled)
    assert (fit.recipe.sharding, fit.recipe.compile, fit.notes) == ("zero3_offload", False, off)


def test_auto_keeps_what_a_checkpoint_has_and_a_lever_does_not(given):
    assert fitted(given, kept="zero3").recipe.sharding == "zero3"
    assert fitted(given, kept="zero3", levers={"sharding": "none"}).recipe.sharding == "none"
    assert fitted(given, kept="zero3").deepspeed == SETTINGS["deepspeed"]
    assert RECIPES["fast"].sharding == "auto"
