"""Plans as files: what they say, what they refuse to read, and the sheet beside them."""

import json
import subprocess
import sys
from dataclasses import replace

import pytest

from interlace import stamps
from interlace.decoder.ratio import num_dropped
from interlace.errors import InputError
from interlace.io import digest, write_json
from interlace.selection.losses import read_losses
from interlace.selection.method import Choice, Method
from interlace.selection.plan import make_plan, read_plan, write_plan
from interlace.selection.registry import METHODS
from interlace.selection.scores import read_scores
from interlace.selection.sheet import plan_sheet
from interlace.stamps import weights_record
from tests.unit.score_tables import RATIOS, plan, random_windows, save, table


@pytest.mark.parametrize("ratio", [0, 1, 2.7, 37, 100])
def test_ratios_that_drop_nothing_or_more_than_a_third_name_their_key(ratio):
    with pytest.raises(InputError, match=r"experiments\.ratios: "):
        num_dropped(ratio, 36)


def test_ratios_of_the_paper():
    assert [num_dropped(ratio, 36) for ratio in RATIOS] == [3, 5, 7, 9]
    assert num_dropped(12.5, 24) == 3
    assert num_dropped(28.7, 1000) == 287  # 28.7 * 1000 / 100 is 286.99... in floats
    assert num_dropped(34, 36) == 12  # exactly a third


def test_unknown_names_and_missing_scores():
    with pytest.raises(
        InputError, match=r"experiments\.method: `interlase` is none of dense, sleb"
    ):
        make_plan("interlase", 25, num_layers=36)
    with pytest.raises(InputError, match="interlace: needs similarity scores"):
        make_plan("interlace", 25, num_layers=36)
    with pytest.raises(InputError, match=r"sleb: needs sleb\.json"):
        make_plan("sleb", 25, num_layers=36)
    with pytest.raises(InputError, match=r"plan\.protect: layer 36"):
        make_plan("random", 25, num_layers=36, protect=[36])
    with pytest.raises(InputError, match=r"plan\.protect: 19 protected layers leave too few"):
        make_plan("random", 25, num_layers=36, protect=range(19))
    with pytest.raises(InputError, match=r"plan\.reading: `both`"):
        make_plan("random", 25, num_layers=36, reading="both")
    with pytest.raises(InputError, match="scores of 12 layers for a model of 36"):
        make_plan("interlace", 25, table([0.5] * 12), num_layers=36)


def write_config(folder, layers, deepstack=3):
    write_json(
        folder / "config.json",
        {
            "model_type": "qwen3_vl",
            "text_config": {"num_hidden_layers": layers},
            "vision_config": {"deepstack_visual_indexes": list(range(deepstack))},
        },
    )


@pytest.mark.parametrize("reading", ["paper", "released"])
def test_write_plan_reads_scores_and_writes_plan_and_sheet(tmp_path, reading):
    path = save(tmp_path / "windows.parquet", random_windows(36, samples=6))
    write_config(tmp_path / "base", 36)
    write_json(tmp_path / "base" / "source.json", {"resolved": "abc"})
    out = tmp_path / "plans" / "interlace-25.json"
    settings = {"reading": reading, "protect": [0], "modality": "visual", "subsets": ["a"]}
    write_plan(
        "interlace", 25, tmp_path / "base", out, settings,
        model_key="m", seed=7, windows=path,
    )  # fmt: skip
    made = read_plan(out, num_layers=36)
    scores = read_scores(path, "m", 36, "visual", ["a"])
    expected = plan("interlace", 25, scores, reading=reading, protect=[0])
    assert (made.drop, made.tune) == (expected.drop, expected.tune)
    assert made.scores_digest == scores.digest
    assert made.calibration == {
        "text": "conversation", "modality": "visual", "subsets": ["a"], "num_samples": 2,
    }  # fmt: skip
    assert (made.reading, made.protect, made.seed) == (reading, [0], 7)
    said = [warning for warning in made.warnings if "(scoring.text: prompt)" in warning]
    assert len(said) == (reading == "released")
    provenance = json.loads(out.read_text())["provenance"]
    assert provenance["config_digest"] == digest(["interlace", 25, settings])
    assert (provenance["num_samples"], provenance["model_revision"]) == (2, "abc")
    sheet = out.with_suffix(".md").read_text()
    assert f"reading `{reading}`" in sheet
    assert "2 samples of a, visual tokens" in sheet
    assert "protected: 0" in sheet


def test_plans_for_another_depth_and_torn_ones_are_refused(tmp_path):
    out = tmp_path / "plan.json"
    write_json(out, make_plan("random", 25, num_layers=36).to_dict())
    with pytest.raises(InputError, match="a plan for 36 layers, the model has 27"):
        read_plan(out, num_layers=27)
    body = json.loads(out.read_text())
    for change in (
        {"tune": body["tune"][1:]},
        {"order": body["drop"][1:]},
        {"protect": body["drop"][:1]},
        {"measures": [{"name": "layer", "unit": "", "size": 1, "values": [0.5]}]},
        {"measures": [{"name": "layer", "unit": "", "size": 1, "values": ["x"] * 36}]},
        {"measures": ["layer"]},
        {"triplets": [1]},
        {"drop": [float(layer) for layer in body["drop"]]},
        {"drop": None},
        {"num_layers": "36"},
        {"seed": True},
        {"ratio": "25"},
        {"how_reached": None},
        {"warnings": [3]},
        {"calibration": "text"},
        {"calibration": {}},
        {"calibration": {"text": "", "modality": "all", "subsets": None}},
    ):
        write_json(out, body | change)
        with pytest.raises(InputError, match=r"plan\.json: not a valid plan"):
            read_plan(out)
    write_json(out, {key: value for key, value in body.items() if key != "how_reached"})
    with pytest.raises(InputError, match=r"plan\.json: not a valid plan"):
        read_plan(out)


def test_a_window_without_a_score_is_refused(tmp_path):
    out = tmp_path / "plan.json"
    body = plan("interlace", 25, table([0.5] * 12)).to_dict()
    for score in (float("nan"), None):
        body["triplets"][0]["score"] = score
        out.write_text(json.dumps(body))
        with pytest.raises(
            InputError, match=r"score of the window at \d+ is no number\); plan again"
        ):
            read_plan(out)


def test_protected_layers_in_every_triplet_name_what_is_missing():
    message = r"plan\.protect: \[1, 4, 7, 10\] leaves no 3 disjoint triplets in 12 layers"
    with pytest.raises(InputError, match=message):
        plan("interlace", 25, table([0.5] * 12), protect=[1, 4, 7, 10])


def test_a_choice_that_drops_nothing_is_refused(monkeypatch):
    def choose(request):
        return Choice([], [], "nothing fits")

    monkeypatch.setitem(METHODS, "toy", Method(choose, "Toy"))
    with pytest.raises(InputError, match="toy finds no layer to drop, 3 are asked for"):
        make_plan("toy", 25, num_layers=12)


# Losses


def loss_file(path, **changes):
    about = {"text": "whole conversations", "samples": ["a", "b"]}
    body = {"model": "m", "num_layers": 12, "base_loss": 10.0, "calibration": about} | changes
    write_json(path, body)
    return path


def removals(*layers):
    return [{"layer": layer, "loss": 10.0 + layer, "candidates": {}} for layer in layers]


def test_dropping_a_deepstack_layer_is_warned_of(tmp_path):
    write_config(tmp_path, 12)
    sleb = loss_file(tmp_path / "sleb.json", removals=removals(1, 7, 2))
    out = tmp_path / "p.json"
    made = write_plan(
        "sleb", 25, tmp_path / "config.json", out, {}, model_key="m", seed=0, sleb=sleb
    )
    assert made.order == [1, 7, 2]
    assert made.measures[0]["values"][7] == 1.7
    assert made.calibration["num_samples"] == 2
    assert made.scores_digest
    assert "DeepStack" in made.warnings[0]
    assert "dropping layer 1, 2 " in made.warnings[0]
    assert made.warnings[0] in out.with_suffix(".md").read_text()
    assert not make_plan("sleb", 25, num_layers=12, removals=[3, 4, 5], num_deepstack=3).warnings


def test_one_shot_losses_make_a_plan(tmp_path):
    write_config(tmp_path, 12)
    values = [30.0, 12, 11, 13, 20, 20, 20, 20, 20, 20, 20, 10.5]
    losses = loss_file(tmp_path / "block_losses.json", losses=values)
    out = tmp_path / "p.json"
    made = write_plan(
        "shortened_llama", 25, tmp_path, out, {}, model_key="m", seed=0, losses=losses
    )
    assert made.order == [11, 2, 1]
    assert made.measures[0]["values"] == [value / 10 for value in values]
    assert "scores: 2 samples of all subsets" in out.with_suffix(".md").read_text()


@pytest.mark.parametrize(
    ("kind", "changes", "message"),
    [
        ("sleb", {"model": "other"}, "a search on other, 12 layers; needed is m, 12: search again"),
        ("sleb", {"num_layers": 36}, "a search on m, 36 layers; needed is m, 12"),
        ("sleb", {"removals": [{"layer": 3}]}, "not a result of SLEB's search"),
        ("sleb", {"removals": [{"layer": 3, "loss": None}]}, "without layer 3 is None; search"),
        ("sleb", {"base_loss": None}, "loss without layer none is None"),
        ("sleb", {"removals": removals(3, 4, 12)}, "removes 12, no layer of 0 to 11; search"),
        ("sleb", {"removals": removals(3, -1, 4)}, "removes -1, no layer of 0 to 11"),
        ("sleb", {"removals": removals(3, 4, 5, 3)}, "removes a layer twice; search again"),
        ("sleb", {"removals": [{"layer": "3", "loss": 11.0}]}, "removes '3', no layer of 0 to 11"),
        ("losses", {"losses": "abcdefghijkl"}, "not a file of losses"),
        ("losses", {"losses": [True] * 12}, "the loss without layer 0 is True"),
        ("losses", {"model": "other"}, "losses on other, 12 layers; needed is m, 12: measure"),
        ("losses", {"losses": [1.0] * 11}, "11 losses for 12 layers; measure again"),
        ("losses", {"losses": [1.0] * 11 + ["x"]}, "the loss without layer 11 is x"),
        ("losses", {"losses": None}, "not a file of losses"),
        ("losses", {"calibration": {}}, "lacks a key"),
    ],
)
def test_wrong_losses_are_one_line_that_names_the_file(tmp_path, kind, changes, message):
    write_config(tmp_path, 12)
    whole = {"removals": removals(3, 4, 5)} if kind == "sleb" else {"losses": [11.0] * 12}
    path = loss_file(tmp_path / "found.json", **(whole | changes))
    method = "sleb" if kind == "sleb" else "shortened_llama"
    with pytest.raises(InputError, match=message) as raised:
        write_plan(
            method, 25, tmp_path, tmp_path / "p.json", {}, model_key="m", seed=0, **{kind: path}
        )
    assert str(raised.value).startswith(str(path))
    assert "\n" not in str(raised.value)
    assert not (tmp_path / "p.json").exists()


def test_a_loss_that_is_not_a_number_is_refused(tmp_path):
    write_config(tmp_path, 12)
    path = loss_file(tmp_path / "losses.json", losses=[11.0] * 12)
    path.write_text(path.read_text().replace("11.0", "NaN", 1))
    with pytest.raises(InputError, match=r"losses\.json: the loss without layer 0 is nan"):
        read_losses(path, "m", 12)


# The weights


def weights(folder, content):
    folder.mkdir(exist_ok=True)
    (folder / "model.safetensors").write_bytes(content)
    return weights_record(folder)


@pytest.mark.parametrize("kind", ["windows", "sleb", "losses"])
def test_scores_of_other_weights_of_the_same_key_and_depth_are_refused(tmp_path, kind, monkeypatch):
    base = tmp_path / "base"
    measured = weights(base, b"measured")
    write_config(base, 12)
    method = {"windows": "interlace", "sleb": "sleb", "losses": "shortened_llama"}[kind]
    path = tmp_path / "found"
    if kind == "windows":
        made_up = random_windows(12)
        save(path, replace(made_up, info=made_up.info | measured))
    else:
        body = {"removals": removals(3, 4, 5)} if kind == "sleb" else {"losses": [11.0] * 12}
        loss_file(path, **body, **measured)

    def write():
        out = tmp_path / "p.json"
        return write_plan(method, 25, base, out, {}, model_key="m", seed=0, **{kind: path})

    expected = write().drop
    with monkeypatch.context() as patch:  # nothing is read where sizes and times are the same
        patch.setattr(stamps, "folder_digest", None)
        assert write().drop == expected
    (base / "model.safetensors").touch()
    assert write().drop == expected  # the same bytes
    (tmp_path / "p.json").unlink()
    weights(base, b"trained.")
    message = rf"found: measured on other weights than .*base holds .*{measured['model_digest']}"
    with pytest.raises(InputError, match=message) as raised:
        write()
    assert "again" in str(raised.value)
    assert not (tmp_path / "p.json").exists()


def test_slebs_plan_says_what_the_search_took(tmp_path):
    write_config(tmp_path, 12)
    work = {"layer_evaluations": 404, "layer_evaluations_uncached": 1000}
    sleb = loss_file(tmp_path / "sleb.json", removals=removals(3, 4, 5), **work)
    out = tmp_path / "p.json"
    made = write_plan("sleb", 25, tmp_path, out, {}, model_key="m", seed=0, sleb=sleb)
    said = "the search ran 404 of 1000 layer evaluations of the plain loop (40.4 %)"
    assert said in made.how_reached
    assert said in out.with_suffix(".md").read_text()


# The sheet


def test_the_sheet_says_what_was_passed_over_and_why():
    triplets = [0.0] * 10
    triplets[1], triplets[3], triplets[7] = 0.9, 0.95, 0.8
    sheet = plan_sheet(plan("interlace", 17, table([0.5] * 12, triplets=triplets)))
    assert "# Plan: INTERLACE at 17 %" in sheet
    assert "| 1 | 3..5 | 0.950000 | 1 | 4 | 3 | 5 |" in sheet
    assert "| 2 | 7..9 | 0.800000 | 3 | 8 | 7 | 9 |" in sheet
    passed = sheet[sheet.index("passed over") : sheet.index("## Every layer")]
    assert "| 2 | 1..3 | 0.900000 | 1 |" in passed
    assert passed.count("\n| ") == 2  # the header and that one
    assert "\n| 4 | drop | 0.500000 (5) | 0.000000 (6) |" in sheet
    assert "...TxaaT" not in sheet
    assert "    ...Txa.Txa .." in sheet


def test_the_sheet_of_a_loss_ranks_the_lowest_first():
    losses = {layer: 10.0 + layer for layer in range(12)}
    made = make_plan("shortened_llama", 10, num_layers=12, losses=losses, protect=[1])
    sheet = plan_sheet(made)
    assert "| 0 | drop | 10.000000 (1) |" in sheet
    assert "| 1 | freeze, protected | – |" in sheet
    assert "Dropped in the order taken: 0" in sheet


def test_planning_needs_no_torch():
    code = (
        "import sys, interlace.selection.plan as p; import interlace.scoring.store;"
        "sys.exit('torch' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0
