"""SLEB from known prefixes removes what a plain loop over really pruned models removes."""

import json
import re
import shutil

import pytest
import torch

from interlace.decoder.load import load_model
from interlace.errors import InputError
from interlace.sampling.run import draw_samples
from interlace.scoring import sleb
from interlace.scoring.prefixes import Storage
from interlace.scoring.sleb import (
    expected_evaluations,
    full_evaluations,
    run_sleb,
    sleb_search,
)
from interlace.selection.plan import make_plan
from tests.tiny import make_tiny_checkpoint, make_tiny_finevision
from tests.tiny_families import tiny_batch, tiny_model
from tests.unit.sleb_reference import (
    batches_of,
    identity_search,
    other_texts,
    reference_loss,
    reference_search,
)

LAYERS = 7
SETTINGS = {"samples": 5, "max_length": 256, "batch_tokens": 100}


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


def tiny(folder, seed, tied=True, layers=LAYERS):
    path = folder / f"model-{seed}-{tied}-{layers}"
    if not path.exists():
        make_tiny_checkpoint(path, layers=layers, seed=seed, tied=tied)
    return path


def assert_same_search(search, steps, rel):
    assert [removal.layer for removal in search.removals] == [layer for layer, _ in steps]
    for removal, (layer, losses) in zip(search.removals, steps, strict=True):
        assert removal.candidates == pytest.approx(losses, rel=rel)
        assert list(removal.candidates) == list(losses)
        assert removal.loss == removal.candidates[layer]


@pytest.mark.parametrize(
    ("seed", "tied", "size", "protect"),
    [(0, True, 8, ()), (1, False, 5, (2,)), (2, True, 3, (3, 4))],
)
def test_removals_and_losses_equal_the_reference_loop(folder, seed, tied, size, protect):
    path = tiny(folder, seed, tied)
    model, batches = load_model(path, "float64"), batches_of(folder, path, size)
    assert any(not batch["attention_mask"].all() for batch in batches)
    assert any("pixel_values" in batch for batch in batches)
    steps, whole = reference_search(model, batches, 3, protect), reference_loss(model, batches)
    for states in (2, 1000):
        search = sleb_search(model, batches, 3, protect, cache_bytes=states * state_bytes(batches))
        assert_same_search(search, steps, 1e-9)
        assert search.base_loss == pytest.approx(whole, rel=1e-9)
    assert len(model.model.language_model.layers) == LAYERS


def state_bytes(batches, hidden=32, itemsize=8):
    """Bytes of one hidden state of every batch."""
    return sum(batch["input_ids"].numel() for batch in batches) * hidden * itemsize


@pytest.mark.parametrize("family", ["llama", "qwen2", "gemma3", "qwen2_5_vl"])
def test_other_families_and_text_only_models(family):
    model = tiny_model(family, layers=6).double()
    batches = [tiny_batch(family, seed=0), tiny_batch(family, with_image=False, seed=1)]
    if family == "gemma3":  # its config calls the token otherwise
        model.config.image_token_id = model.config.image_token_index
    assert_same_search(sleb_search(model, batches, 2), reference_search(model, batches, 2), 1e-9)


@pytest.mark.parametrize("family", ["llama", "qwen2_5_vl", "internvl"])
def test_removals_are_those_of_turning_layers_off_without_deepstack(family):
    model = tiny_model(family, layers=7).double()
    batches = [tiny_batch(family, seed=0), tiny_batch(family, with_image=False, seed=1)]
    assert_same_search(sleb_search(model, batches, 3), identity_search(model, batches, 3), 1e-9)


def test_with_deepstack_a_removed_layer_is_absent():
    model = tiny_model("qwen3_vl", layers=7).double()
    batches = [tiny_batch("qwen3_vl", seed=0)]
    ours = sleb_search(model, batches, 1).removals[0].candidates
    assert ours == pytest.approx(reference_search(model, batches, 1)[0][1], rel=1e-9)
    off = identity_search(model, batches, 1)[0][1]
    assert abs(ours[1] - off[1]) > 1e-6 * off[1]  # its features would enter elsewhere


def test_memory_for_states_never_changes_the_result_and_is_kept_to(folder, monkeypatch):
    path = tiny(folder, 0, layers=9)
    model, batches = load_model(path), batches_of(folder, path, 5)
    runs = []

    class Counted(sleb.BatchLoss):
        def __init__(self, *given):
            super().__init__(*given)
            runs.append(self)

    monkeypatch.setattr(sleb, "BatchLoss", Counted)
    one = state_bytes(batches, itemsize=4)
    everything = sleb_search(model, batches, 5, cache_bytes=1e12)
    work = []
    for states in (0, 3, 7, 14, 23):
        runs.clear()
        held = []
        search = sleb_search(
            model, batches, 5, cache_bytes=states * one,
            after_removal=lambda _, held=held: held.append(max(len(r.prefixes) for r in runs)),
        )  # fmt: skip
        assert search.removals == everything.removals  # to the last bit
        assert max(held) <= states
        work.append(search.layer_evaluations)
    assert work == sorted(work, reverse=True)
    assert work[0] == len(batches) * (9 + full_evaluations(9, 5))  # nothing kept: the plain loop
    assert work[-1] == everything.layer_evaluations < 0.55 * work[0]


@pytest.mark.parametrize("protect", [(), (4,)])
def test_the_work_is_known_without_a_model(folder, protect, capsys):
    path = tiny(folder, 0, layers=10)
    model, batches = load_model(path), batches_of(folder, path, 5)[:1]
    for states in (0, 8, 17, 1000):
        memory = states * state_bytes(batches, itemsize=4)
        search = sleb_search(model, batches, 3, protect, cache_bytes=memory)
        removals = [removal.layer for removal in search.removals]
        storage = Storage.fitting(10, states)
        one = expected_evaluations(10, removals, storage, protect)
        assert search.layer_evaluations == one
        said = re.search(r"about (\d+) % of the layer evaluations", capsys.readouterr().err)
        share = 100 * one / full_evaluations(10, 3)
        assert abs(int(said[1]) - share) < 12  # which layers go is a guess before the search


def test_55_percent_want_17_states():
    def share(states, removals):
        ran = expected_evaluations(36, removals, Storage.fitting(36, states))
        return ran / full_evaluations(36, 9)

    for removals in ([*range(1, 10)], [*range(26, 35)], [*range(4, 36, 4), 17]):
        assert share(17, removals) <= 0.55
        assert share(1000, removals) < share(34, removals) < share(4, removals)
        assert share(4, removals) > 0.55


def test_as_few_layers_run_as_the_known_prefixes_leave(folder):
    path = tiny(folder, 0, layers=10)
    model, batches = load_model(path), batches_of(folder, path, 12)
    ran = 0

    def count(*_):
        nonlocal ran
        ran += 1

    for layer in model.model.language_model.layers:
        layer.register_forward_hook(count)
    search = sleb_search(model, batches, 5)
    assert ran == search.layer_evaluations
    # With n layers left and the one at position p gone, candidates before p go on from p, those
    # behind from their own place.
    left = list(range(10))
    expected = 10 + sum(10 - 1 - j for j in range(1, 9))
    for removal in search.removals[:-1]:
        p, n = left.index(removal.layer), len(left)
        expected += (p - 1) * (n - 1 - p) + sum(n - 2 - j for j in range(p, n - 2))
        left.remove(removal.layer)
    assert search.layer_evaluations == expected
    assert full_evaluations(36, 9) == sum((36 - i - 2) * (36 - i - 1) for i in range(9))


def test_of_equal_losses_the_first_layer_goes(folder):
    path = tiny(folder, 1, False)
    model, batches = load_model(path), batches_of(folder, path, 12)
    for block in model.model.language_model.layers[1:-1]:  # these do nothing
        torch.nn.init.zeros_(block.self_attn.o_proj.weight)
        torch.nn.init.zeros_(block.mlp.down_proj.weight)
    removals = sleb_search(model, batches, 3).removals
    assert [removal.layer for removal in removals] == [1, 2, 3]
    assert len({loss for removal in removals for loss in removal.candidates.values()}) == 1


def test_protected_layers_are_no_candidates(folder, monkeypatch):
    path = tiny(folder, 0)
    model, batches = load_model(path), batches_of(folder, path, 12)
    search = sleb_search(model, batches, 2, protect=[1, 2, 3])
    assert {removal.layer for removal in search.removals} == {4, 5}
    monkeypatch.setattr(sleb, "BatchLoss", lambda *_: pytest.fail("a batch was run"))
    with pytest.raises(InputError, match=r"plan\.protect leaves SLEB 2 of 3 layers to remove"):
        sleb_search(model, batches, 3, protect=[1, 2, 3])
    with pytest.raises(InputError, match="SLEB can remove 1 to 5 of 7 layers, not 6"):
        sleb_search(model, batches, 6)


def test_too_many_protected_layers_are_refused_before_anything_is_loaded(folder, tmp_path):
    shutil.copyfile(tiny(folder, 0) / "config.json", tmp_path / "config.json")
    with pytest.raises(InputError, match=r"plan\.protect leaves SLEB 1 of 2 layers to remove"):
        search_to_file(tmp_path, tmp_path, tmp_path / "out.json", protect=[0, 1, 2, 3, 4])


def test_a_loss_that_is_no_number_is_one_clear_error(folder):
    path = tiny(folder, 0)
    model, batches = load_model(path), batches_of(folder, path, 12)
    model.model.language_model.layers[3].mlp.down_proj.weight.data.fill_(float("nan"))
    with pytest.raises(InputError, match=r"loss of the whole model is nan; choose another models"):
        sleb_search(model, batches, 1)


def search_to_file(path, folder, out, settings=SETTINGS, seed=0, ratio=30, **more):
    run_sleb(path, folder / "samples", out, settings, model_key="m", ratio=ratio, seed=seed, **more)


def test_file_records_the_search_and_feeds_a_plan(folder):
    path, out = tiny(folder, 1, False), folder / "sleb.json"
    search_to_file(path, folder, out)
    body = json.loads(out.read_text())
    assert (body["model"], body["num_layers"], body["provenance"]["num_samples"]) == ("m", 7, 5)
    assert len(body["calibration"]["samples"]) == 5
    assert "WikiText-2" in body["calibration"]["text"]
    assert body["layer_evaluations"] < 0.75 * body["layer_evaluations_uncached"]
    removals = [removal["layer"] for removal in body["removals"]]
    assert make_plan("sleb", 30, num_layers=7, removals=removals).drop == sorted(removals)
    assert not list(folder.glob("*.progress.json"))
    again = folder / "again.json"
    search_to_file(path, folder, again)
    assert again.read_bytes() == out.read_bytes()


class Killed(BaseException):
    pass


@pytest.fixture(scope="module")
def killed(folder):
    """A folder with a whole search for three removals, and one killed while it looks for the third."""
    path, made, seen = tiny(folder, 2, layers=10), folder / "killed", 0
    shutil.copytree(folder / "samples", made / "samples")
    search_to_file(path, made, made / "whole.json")
    real = sleb.finite_loss

    def dies(*given):
        nonlocal seen
        seen += 1
        if seen > 1 + 8 + 7 + 3:
            raise Killed
        return real(*given)

    with pytest.MonkeyPatch.context() as patch, pytest.raises(Killed):
        patch.setattr(sleb, "finite_loss", dies)
        search_to_file(path, made, made / "sleb.json")
    assert not (made / "sleb.json").exists()
    assert len(json.loads((made / "sleb.progress.json").read_text())["search"]["removals"]) == 2
    return path, made


@pytest.fixture
def interrupted(killed, tmp_path):
    path, made = killed
    shutil.copytree(made, tmp_path, dirs_exist_ok=True)  # times are kept
    return path, tmp_path / "sleb.json"


def comparable(path):
    body = json.loads(path.read_text())
    return {k: v for k, v in body.items() if k != "layer_evaluations"}


def test_a_killed_search_goes_on_after_its_last_removal(tmp_path, interrupted, capsys):
    path, out = interrupted
    whole = out.with_name("whole.json")
    # Less memory than before is allowed: that may be why it was killed.
    search_to_file(path, tmp_path, out, SETTINGS | {"cache_gb": 0})
    assert "going on after 2 removals" in capsys.readouterr().err
    assert comparable(out) == comparable(whole)
    assert not out.with_name("sleb.progress.json").exists()


def test_a_search_whose_progress_is_torn_begins_afresh(tmp_path, interrupted):
    path, out = interrupted
    progress = out.with_name("sleb.progress.json")
    progress.write_text(progress.read_text()[:-30])
    search_to_file(path, tmp_path, out)
    assert out.read_bytes() == out.with_name("whole.json").read_bytes()


CHANGES = ("weights", "template", "texts", "seed", "settings", "protect")
RECORDS = ("torn", "{}", "[]", '{"key": 1, "search": {"removals": [{}]}}')  # none is whole


@pytest.mark.parametrize("change", [None, *CHANGES, *RECORDS])
def test_progress_of_other_inputs_is_not_taken_up(
    folder, interrupted, capsys, change, tmp_path, monkeypatch
):
    path, out = interrupted
    progress = out.with_name("sleb.progress.json")
    settings, more = SETTINGS, {}
    said = "of other weights, samples" if change in CHANGES else "not a whole record of a search"
    if change == "weights":
        path = tiny(folder, 3, layers=10)
    elif change == "template":
        path = shutil.copytree(path, tmp_path / "copied")
        with (path / "chat_template.jinja").open("a") as template:
            template.write("{# #}")
    elif change == "seed":
        more["seed"] = 1
    elif change == "settings":
        settings = SETTINGS | {"max_length": 255}
    elif change == "protect":
        more["protect"] = [8]
    elif change == "texts":
        other_texts(tmp_path / "samples")
    elif change == "torn":
        progress.write_text(progress.read_text()[:-30])
    elif change in RECORDS:
        progress.write_text(change)

    def searched(*_, done, **__):
        assert (done is None) == (change is not None)
        raise Killed

    monkeypatch.setattr(sleb, "sleb_search", searched)
    with pytest.raises(Killed):
        search_to_file(path, tmp_path, out, settings, **more)
    assert (f"sleb.progress.json: {said}" in capsys.readouterr().err) == (change is not None)
