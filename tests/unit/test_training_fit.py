"""What is settled before a model is loaded: what its family, the machine and the memory allow."""

import json
import shutil

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image
from transformers import AutoConfig

import interlace.training.fit as fitting
import interlace.training.setup as setup
import interlace.training.tune as tune
from interlace.config import _check_finetune
from interlace.decoder.load import load_processor
from interlace.errors import InputError
from interlace.training import distributed
from interlace.training.fit import UNKNOWN, fit_memory, longest_sample, settle
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


@pytest.fixture
def fitted(given, tmp_path):
    """Return what is chosen for settings; `kept` is the sharding of a checkpoint to go on from,
    `divisor` says how often a run went out of memory before, `then` what was changed after that."""

    def fitted(base=None, kept=None, divisor=1, then=None, **changes):
        job = {
            "base": str(base or given / "base"), "samples": str(given / "samples"), "seed": 0,
            "settings": {**SETTINGS, **changes}, "out": str(tmp_path / "out"),
            "model_revision": "0",
        }  # fmt: skip
        fit = fit_memory(job, PLAN, 1)
        if (kept, divisor) == (None, 1):
            return fit
        if kept:
            (fit.work / kept / "checkpoint-1").mkdir(parents=True, exist_ok=True)
        for _ in range(divisor.bit_length() - 1):
            fit.smaller.note_out_of_memory(fit.configured)
            fit = fit_memory(job, PLAN, 1)
        job["settings"] |= then or {}
        again = fit_memory(job, PLAN, 1)
        shutil.rmtree(fit.work, ignore_errors=True)
        return again

    return fitted


def but_for_the_kernel(notes):
    """Return notes without that on attention, which a machine without a GPU has."""
    return [note for note in notes if "SDPA sample by sample" not in note]


@pytest.mark.parametrize("several", [{"processes": 2}, {"nodes": 2}])
@pytest.mark.parametrize("loss", ["kd", "ce+kd"])
def test_distillation_is_for_one_process(fitted, several, loss):
    for refuse in (resolve, _check_finetune):
        with pytest.raises(InputError, match=rf"finetune.loss: {loss.replace('+', '.')} .*2 proc"):
            refuse({**SETTINGS, **several, "loss": loss})
        refuse({**SETTINGS, "loss": loss})
        with pytest.raises(InputError, match=r"sharding is zero3; set it to none"):
            refuse({**SETTINGS, "loss": loss, "recipe": "paper"})
    assert fitted(loss=loss).recipe.sharding == "none"


def test_several_ranks_are_never_trained_without_deepspeed(given, fitted, monkeypatch, tmp_path):
    monkeypatch.setattr(distributed, "world", lambda: (2, 0))
    fit = fitted(levers={"sharding": "none"})
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


def test_what_cannot_be_packed_is_not_estimated_as_packed(fitted, gemma3):
    fit = fitted(base=gemma3, micro_batch=16)
    padded = fitted(base=gemma3, micro_batch=16, levers={"packing": False})
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
    (tmp_path / "plan.json").write_text(json.dumps(PLAN))
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


def test_attention_of_rows_that_are_not_packed_is_noted(fitted):
    for levers in ({"packing": False, "attention": "flex_attention"}, {"attention": "varlen"}):
        recipe = "paper" if "packing" not in levers else "fast"
        fit = fitted(recipe=recipe, levers=levers)
        assert fit.recipe.attention == "sdpa"
        assert fit.notes == [f"attention: sdpa, {levers['attention']} is for packed rows"]
    assert fitted(recipe="paper").notes == but_for_the_kernel(fitted().notes) == []


@pytest.mark.parametrize(
    ("capability", "changes", "why"),
    [
        (None, {}, "no kernel: it needs a GPU"),
        ((7, 5), {}, "no kernel: it needs a GPU"),
        ((8, 0), {}, "no kernel for float32"),
        ((8, 0), {"precision": "bfloat16"}, None),
    ],
)
def test_attention_that_runs_without_its_kernel_is_noted(
    given, tmp_path, monkeypatch, capability, changes, why
):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: capability is not None)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _: capability)
    precision = {**SETTINGS, **changes}["precision"]
    for levers in ({}, {"attention": "varlen"}):
        recipe, notes = settle(
            resolve({"levers": levers}), AutoConfig.from_pretrained(given / "base"), precision
        )
        assert recipe.attention == "varlen"
        told = [f"attention: varlen as SDPA sample by sample, {why}"] if why else []
        assert [note[: len(told[0])] for note in notes] == told


def test_a_smaller_micro_batch_is_not_a_reason_for_less_thrift(fitted, monkeypatch):
    """What was chosen for the configured size went out of memory: with less it is to fit."""
    sizes, choose = [], fitting.memory.choose_sharding

    def chosen(estimate_for, *rest):
        sizes.append(estimate_for("none", "none").device)
        return choose(estimate_for, *rest)

    monkeypatch.setattr(fitting.memory, "choose_sharding", chosen)
    whole, half = (
        fitted(levers={"packing": False}, micro_batch=8, divisor=divisor) for divisor in (1, 4)
    )
    assert sizes[0] == sizes[-1]
    assert half.rows == 2
    assert half.estimate.device < whole.estimate.device


@pytest.mark.parametrize(
    ("then", "budget"),
    [
        ({}, 150),
        ({"pack_tokens": 200}, 200),
        ({"recipe": "paper"}, 300),
        ({"levers": {"checkpointing": "tuned"}}, 300),
    ],
    ids=["nothing", "pack_tokens", "recipe", "checkpointing"],
)
def test_rows_are_whole_again_once_something_else_was_done_for_memory(fitted, then, budget):
    assert fitted(divisor=2, then=then).budget == budget


def test_the_tokens_of_a_picture_are_those_that_its_processor_makes(given, tmp_path):
    images = load_processor(given / "base").image_processor
    manifest = {"status": ["kept"], "num_chars": [0], "image_sizes": [[[64, 48], [500, 20]]]}
    pq.write_table(pa.table(manifest), tmp_path / "manifest.parquet")
    grids = images([Image.new("RGB", size) for size in ((64, 48), (500, 20))])["image_grid_thw"]
    made = int(torch.as_tensor(grids).prod(1).sum()) // images.merge_size**2
    assert longest_sample(tmp_path, images) == made + 4
    assert longest_sample(tmp_path, object()) == 2 * UNKNOWN  # a family that says nothing
    assert longest_sample(tmp_path / "absent", images) == UNKNOWN


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
    config = AutoConfig.from_pretrained(gemma3)
    recipe, notes = settle(resolve({"levers": {"vision": "cached"}}), config, "float32")
    assert recipe.vision == "live"
    assert notes[0].startswith("vision: live, vision features are stored for")


def test_what_zero3_gathers_is_not_compiled(fitted, monkeypatch):
    compiled = {"levers": {"compile": True}}
    assert fitted(**compiled).recipe.compile
    for refused in ({"processes": 2}, {"recipe": "paper"}):
        with pytest.raises(InputError, match=r"finetune\.levers\.compile: layers that ZeRO-3"):
            resolve({**SETTINGS, **refused, **compiled})
    off = ["compile: off, layers that ZeRO-3 gathers are not compiled"]
    fit = fitted(kept="zero3_offload", **compiled)
    assert not fit.recipe.compile
    assert fit.notes[-1:] == off
    choose = fitting.memory.choose_sharding
    monkeypatch.setattr(
        fitting.memory, "choose_sharding", lambda *a: choose(*a[:3], "zero3_offload", *a[4:])
    )
    fit = fitted(**compiled)
    assert (fit.recipe.sharding, fit.recipe.compile) == ("zero3_offload", False)
    assert but_for_the_kernel(fit.notes) == off


def test_auto_keeps_what_a_checkpoint_has_and_a_lever_does_not(fitted):
    assert fitted(kept="zero3").recipe.sharding == "zero3"
    assert fitted(kept="zero3", levers={"sharding": "none"}).recipe.sharding == "none"
    assert fitted(kept="zero3").deepspeed == SETTINGS["deepspeed"]
    assert RECIPES["fast"].sharding == "auto"
