"""One-shot losses are those of models without one layer, and SLEB's first step says the same."""

import json

import pytest
import torch

from interlace.decoder.load import load_model
from interlace.errors import InputError
from interlace.scoring.blocks import block_losses, score_blocks
from interlace.scoring.loss import finite_loss
from interlace.scoring.sleb import run_sleb, sleb_search
from interlace.stamps import weights_record
from tests.tiny import make_tiny_checkpoint, make_tiny_samples
from tests.tiny_families import tiny_batch, tiny_model
from tests.unit.sleb_reference import batches_of, loss_without, reference_loss

LAYERS = 6


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("blocks")
    make_tiny_samples(folder / "samples", rows=3)
    make_tiny_checkpoint(folder / "model", layers=LAYERS)
    return folder


def test_losses_equal_those_of_dropped_models_first_and_last_layer_too(folder):
    model = load_model(folder / "model", "float64")
    batches = batches_of(folder, folder / "model", 5)
    assert any(not batch["attention_mask"].all() for batch in batches)
    assert any("pixel_values" in batch for batch in batches)
    found = block_losses(model, iter(batches))
    expected = [loss_without(model, batches, [layer]) for layer in range(LAYERS)]
    assert found.losses == pytest.approx(expected, rel=1e-9)
    assert found.base_loss == pytest.approx(reference_loss(model, batches), rel=1e-9)
    candidates = sleb_search(model, batches, 1).removals[0].candidates
    assert candidates == {layer: found.losses[layer] for layer in range(1, LAYERS - 1)}


@pytest.mark.parametrize("family", ["llama", "gemma3_text"])
def test_text_only_families(family):
    model, batches = tiny_model(family, layers=LAYERS).double(), [tiny_batch(family)]
    expected = [loss_without(model, batches, [layer]) for layer in range(LAYERS)]
    assert block_losses(model, batches).losses == pytest.approx(expected, rel=1e-9)


def test_layers_before_the_removed_one_run_once(folder):
    model = load_model(folder / "model")
    batches = batches_of(folder, folder / "model", 4)
    ran = 0

    def count(*_):
        nonlocal ran
        ran += 1

    for layer in model.model.language_model.layers:
        layer.register_forward_hook(count)
    found = block_losses(model, batches)
    assert ran == found.layer_evaluations
    # The whole model, then what comes after each layer; before the last, one layer again.
    assert ran == len(batches) * (LAYERS + LAYERS * (LAYERS - 1) // 2 + 1)


def test_file_is_of_the_same_samples_as_slebs(folder, tmp_path):
    settings = {"samples": 3, "max_length": 256, "batch_tokens": 200}
    given = (folder / "model", folder / "samples")
    score_blocks(*given, tmp_path / "block_losses.json", settings, model_key="m", seed=4)
    run_sleb(*given, tmp_path / "sleb.json", settings, model_key="m", seed=4, ratio=17)
    blocks = json.loads((tmp_path / "block_losses.json").read_text())
    sleb = json.loads((tmp_path / "sleb.json").read_text())
    assert (blocks["model"], blocks["num_layers"], len(blocks["losses"])) == ("m", LAYERS, LAYERS)
    assert blocks["provenance"]["schema"] == "interlace/block_losses/1"
    for body in (blocks, sleb):
        assert weights_record(folder / "model").items() <= body.items()
    for key in ("base_loss", "num_targets", "calibration"):
        assert blocks[key] == sleb[key]
    assert blocks["calibration"]["samples"]
    first = sleb["removals"][0]["candidates"]
    assert first == {str(layer): blocks["losses"][layer] for layer in range(1, LAYERS - 1)}


def test_a_loss_that_is_no_number_names_the_layer(folder):
    for value, out, message in (
        (float("inf"), 3, r"the loss without layer 3 is inf; choose another models\.<key>\.dtype"),
        (float("nan"), None, r"the loss of the whole model is nan"),
    ):
        with pytest.raises(InputError, match=message):
            finite_loss(torch.tensor(value), out)
    model = load_model(folder / "model")
    model.model.language_model.layers[2].mlp.down_proj.weight.data.fill_(float("nan"))
    with pytest.raises(InputError, match=r"loss of the whole model is nan"):
        block_losses(model, batches_of(folder, folder / "model", 12))
