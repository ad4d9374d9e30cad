"""SLEB with cached prefixes removes what a brute-force loop over really pruned models removes."""

import copy
import json

import pytest
import torch

from interlace.data.chat import load_records
from interlace.data.collate import Collator
from interlace.data.finevision import draw_samples
from interlace.decoder.load import load_model, load_processor
from interlace.decoder.surgery import drop_layers
from interlace.errors import InputError
from interlace.scoring.sleb import full_evaluations, run_sleb, sleb_order, sleb_search
from interlace.selection.plan import make_plan
from tests.tiny import make_tiny_checkpoint, make_tiny_finevision

LAYERS = 7


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("sleb")
    make_tiny_finevision(folder / "source", rows=2)
    settings = {
        "fraction": 1.0, "min_per_subset": 1, "max_images": 3, "max_turns": 5,
        "calibration_fraction": 1.0,
    }  # fmt: skip
    draw_samples(folder / "source", folder / "samples", settings, seed=0)
    return folder


def tiny(folder, seed, tied=True):
    path = folder / f"model-{seed}-{tied}"
    if not path.exists():
        make_tiny_checkpoint(path, layers=LAYERS, seed=seed, tied=tied)
    return path


def batches_of(folder, path, size):
    collate = Collator(load_processor(path), 256)
    records = list(load_records(folder / "samples"))
    return [collate(records[start : start + size]) for start in range(0, len(records), size)]


@torch.no_grad()
def reference_loss(model, batches):
    """Sum over sequences of mean next-token loss x tokens, from all logits of a plain forward."""
    total = 0.0
    for batch in batches:
        logits = model(**{k: v for k, v in batch.items() if k != "labels"}, use_cache=False).logits
        for row in range(len(logits)):
            real = batch["attention_mask"][row].bool()
            ids = batch["input_ids"][row][real]
            losses = torch.nn.functional.cross_entropy(
                logits[row][real][:-1], ids[1:], reduction="none"
            )[ids[1:] != model.config.image_token_id]
            total += float(losses.mean()) * len(losses)
    return total


def reference_order(model, batches, num_dropped):
    """The reference loop, on models whose layers are really dropped."""
    removed, losses = [], []
    for _ in range(num_dropped):
        alive = [layer for layer in range(LAYERS) if layer not in removed]
        best = None
        for layer in alive[1:-1]:
            pruned = copy.deepcopy(model)
            drop_layers(pruned, [*removed, layer])
            loss = reference_loss(pruned, batches)
            if best is None or loss < best[0]:
                best = (loss, layer)
        removed.append(best[1])
        losses.append(best[0])
    return removed, losses


@pytest.mark.parametrize(("seed", "tied", "size"), [(0, True, 8), (1, False, 5), (2, True, 3)])
def test_removals_equal_the_reference_loop(folder, seed, tied, size):
    path = tiny(folder, seed, tied)
    model, batches = load_model(path), batches_of(folder, path, size)
    expected, losses = reference_order(model, batches, 3)
    found = sleb_order(model, batches, 3)
    assert [removal.layer for removal in found] == expected
    assert [removal.loss for removal in found] == pytest.approx(losses, rel=1e-5)
    assert len(model.model.language_model.layers) == LAYERS
    assert reference_loss(model, batches) == pytest.approx(
        sleb_search(model, batches, 1).base_loss, rel=1e-5
    )


def test_every_candidate_loss_equals_that_of_the_pruned_model(folder):
    path = tiny(folder, 0)
    model, batches = load_model(path), batches_of(folder, path, 6)
    first, second = sleb_order(model, batches, 2)
    assert list(first.candidates) == [1, 2, 3, 4, 5]
    for layer, loss in second.candidates.items():
        pruned = copy.deepcopy(model)
        drop_layers(pruned, [first.layer, layer])
        assert reference_loss(pruned, batches) == pytest.approx(loss, rel=1e-5)


def test_about_half_of_the_layers_are_run_and_they_are_counted(folder):
    path = tiny(folder, 0)
    model, batches = load_model(path), batches_of(folder, path, 12)
    ran = 0

    def count(*_):
        nonlocal ran
        ran += 1

    for layer in model.model.language_model.layers:
        layer.register_forward_hook(count)
    search = sleb_search(model, batches, 4)
    assert ran == search.layer_evaluations
    assert full_evaluations(36, 9) == sum((36 - i - 2) * (36 - i - 1) for i in range(9))
    cached = 36 + sum(sum(range(1, 36 - i - 1)) for i in range(9))
    assert cached / full_evaluations(36, 9) < 0.51
    assert search.layer_evaluations == LAYERS + sum(sum(range(1, LAYERS - i - 1)) for i in range(4))


def test_protected_layers_are_no_candidates(folder):
    path = tiny(folder, 0)
    model, batches = load_model(path), batches_of(folder, path, 12)
    search = sleb_search(model, batches, 2, protect=[1, 2, 3])
    assert {removal.layer for removal in search.removals} == {4, 5}
    with pytest.raises(InputError, match=r"plan\.protect leaves SLEB no layer"):
        sleb_search(model, batches, 3, protect=[1, 2, 3])
    with pytest.raises(InputError, match="SLEB can remove 1 to 5 of 7 layers, not 6"):
        sleb_search(model, batches, 6)


def test_file_records_the_search_and_feeds_a_plan(folder):
    path, out = tiny(folder, 1, False), folder / "sleb.json"
    settings = {"samples": 5, "max_length": 256, "batch_size": 2}
    run_sleb(path, folder / "samples", out, settings, model_key="m", ratio=30, seed=0)
    body = json.loads(out.read_text())
    assert (body["model"], body["num_layers"], body["provenance"]["num_samples"]) == ("m", 7, 5)
    assert len(body["calibration"]["samples"]) == 5
    assert "WikiText-2" in body["calibration"]["text"]
    assert body["layer_evaluations"] < 0.75 * body["layer_evaluations_uncached"]
    removals = [removal["layer"] for removal in body["removals"]]
    assert make_plan("sleb", 30, num_layers=7, removals=removals).drop == sorted(removals)
    again = folder / "again.json"
    run_sleb(path, folder / "samples", again, settings, model_key="m", ratio=30, seed=0)
    assert again.read_bytes() == out.read_bytes()
