"""Scores, losses, pruning and saving on a GPU agree with what the same model gives step by step."""

import numpy as np
import pytest
import torch

from interlace.decoder.checkpoint import save_checkpoint
from interlace.decoder.layers import decoder_layers
from interlace.decoder.load import load_model, load_processor
from interlace.scoring.similarity import window_sums
from interlace.scoring.sleb import sleb_search
from interlace.sparsity.two_four import prune_two_four
from tests.boundaries import BoundaryRecorder
from tests.tiny import make_tiny_checkpoint, make_tiny_samples
from tests.unit.sleb_reference import batches_of, loss_without
from tests.unit.wanda_oracle import linears, oracle_masks
from tests.unit.window_oracle import scores_of

DEVICE = "cuda"
pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("gpu")
    make_tiny_samples(folder / "samples", rows=2)
    make_tiny_checkpoint(folder / "base", layers=6)
    return folder


@pytest.fixture(scope="module")
def batches(folder):
    """Padded batches, text and images mixed."""
    batches = batches_of(folder, folder / "base", 4)
    assert any(not batch["attention_mask"].all() for batch in batches)
    assert any("pixel_values" in batch for batch in batches)
    return batches


@pytest.fixture(params=["float32", "bfloat16"])
def model(request, folder):
    return load_model(folder / "base", request.param, DEVICE)


def test_window_scores_are_of_what_the_layers_see(model, batches):
    for batch in batches:
        with BoundaryRecorder(model) as record, torch.no_grad():
            sums, counts, angles = window_sums(model, [batch], 3)
        wanted = scores_of(record, batch, model.config.image_token_id, 3)
        np.testing.assert_array_equal(counts, wanted[1])
        per_token = counts.clip(1)[:, None]
        np.testing.assert_allclose(sums / per_token, wanted[0] / per_token, rtol=0, atol=1e-5)
        np.testing.assert_allclose(angles, wanted[2], rtol=0, atol=1e-5)


def test_slebs_losses_are_those_of_dropped_models(model, batches):
    near = 1e-4 if model.dtype == torch.float32 else 2e-2
    removed = []
    for removal in sleb_search(model, batches, 2).removals:
        losses = {
            layer: loss_without(model, batches, [*removed, layer]) for layer in removal.candidates
        }
        assert removal.candidates == pytest.approx(losses, rel=near)
        assert removal.loss == min(removal.candidates.values())
        removed.append(removal.layer)


def test_wanda_prunes_what_brute_force_prunes(folder, model, batches):
    expected = oracle_masks(
        load_model(folder / "base", str(model.dtype).removeprefix("torch."), DEVICE), batches
    )
    prune_two_four(model, "wanda_2_4", batches)
    differing = total = 0
    for index, layer in enumerate(decoder_layers(model)):
        for name, linear in linears(layer):
            zeros = (linear.weight == 0).cpu()
            assert (zeros.reshape(-1, 4).sum(1) == 2).all()
            differing += int((zeros != expected[f"{index}.{name}"]).sum())
            total += zeros.numel()
    assert differing <= 1e-3 * total  # near ties may fall either way


def test_a_checkpoint_is_proven_and_holds_the_weights(folder, model, tmp_path):
    processor = load_processor(folder / "base")
    save_checkpoint(model, processor, tmp_path / "out", {"model": "m", "variant": "x"})
    again = load_model(tmp_path / "out", "auto", "cpu")
    assert again.dtype == model.dtype
    for name, weight in model.state_dict().items():
        assert torch.equal(again.state_dict()[name], weight.cpu()), name
