"""What a model card says, that a hub understands it, and that its snippet runs as it stands."""

import json
import re
import shutil

import pytest
from huggingface_hub import ModelCard
from hypothesis import given
from hypothesis import strategies as st

from interlace.card import model_card, ranges
from interlace.decoder.checkpoint import save_checkpoint
from interlace.decoder.load import load_model, load_processor
from interlace.decoder.surgery import drop_layers
from interlace.errors import InputError
from interlace.io import write_json
from interlace.origin import base_record, data_record
from tests.tiny import make_tiny_checkpoint, make_tiny_tokenizer, tiny_image
from tests.tiny_families import tiny_model

PLAN = {
    "method": "interlace",
    "ratio": 25,
    "num_layers": 8,
    "drop": [2, 5],
    "tune": [1, 4],
    "reading": "paper",
}
TRAINING = {
    "recipe": "fast",
    "levers": {"graph": "tuned", "packing": True},
    "learning_rate": 1e-5,
    "steps": 7574,
    "loss_first": 2.34567,
    "loss_last": 0.98765,
    "seconds": 7200.0,
    "world_size": 1,
    "hardware": "1 x NVIDIA H100",
    "num_trained_parameters": 1740000000,
    "num_parameters": 8767123696,
    "counts": {"samples": 240000, "dropped_too_long": 0, "tokens_cut": 17},
    "trained_parameters": ["model.layers.1.mlp.weight"],
    "failures": ["a sample"],
}
BASE = {"source": "hub", "path": "org/Base-8B", "resolved": "c" * 40, "license": "apache-2.0"}
DATA = {
    "source": "hub",
    "path": "org/data",
    "revision": "d" * 40,
    "seed": 3,
    "fraction": 0.01,
    "unit": "row_group",
    "max_images": 3,
    "max_turns": 5,
    "calibration_held_out": False,
    "samples": 240123,
    "calibration": 24012,
    "images": 250000,
    "subsets": {"docs|scans": 240000, "geo+(a)": 123, "empty": 0},
}


def make_info(**changes):
    info = {
        "provenance": {"num_samples": 240001},
        "model": "base_8b",
        "variant": "interlace-25-ft",
        "base": BASE,
        "data": DATA,
        "plan": PLAN,
        "training": TRAINING,
        "sparsity": None,
        "loads_with": "AutoModelForImageTextToText",
        "num_layers": 6,
        "digest": "0123456789abcdef",
    }
    return info | changes


def test_the_head_is_what_a_hub_reads():
    data = ModelCard(model_card(make_info())).data
    assert data.base_model == "org/Base-8B"
    assert data.datasets == ["org/data"]
    assert data.license == "apache-2.0"
    assert data.library_name == "transformers"
    assert data.pipeline_tag == "image-text-to-text"
    assert data.tags == ["interlace", "pruned", "layer-pruning"]


def test_what_is_not_of_a_hub_is_not_named_as_such():
    local = make_info(base={**BASE, "source": "local"}, data={**DATA, "source": "local"})
    data = ModelCard(model_card(local)).data
    assert data.base_model is None
    assert data.datasets is None


def test_the_card_tells_base_layers_data_recipe_licence_and_paper():
    card = model_card(make_info(), scores=["| AI2D | 61 |"])
    for words in (
        "[`org/Base-8B`](https://huggingface.co/org/Base-8B) (commit `cccccccccccc`)",
        "without 2 of its 8 decoder layers",
        "| dropped (2) | 2, 5 |",
        "| fine-tuned (2) | 1, 4 |",
        "| kept, as 0-5 of this checkpoint (6) | 0-1, 3-4, 6-7 |",
        "| share of each subset | 1 % |",
        f"| revision | `{'d' * 40}` |",
        "| seed | 3 |",
        "| samples used | 240,001 |",
        "| subsets | 2 |",
        r"| `docs\|scans` | 240,000 |",
        "| `geo+(a)` | 123 |",
        "- 1,740,000,000 of 8,767,123,696 parameters trained",
        "- loss 2.346 at the first step, 0.9877 at the last",
        "- 7,574 optimizer steps",
        "- 2.0 h on 1 x NVIDIA H100, 1 process(es)",
        "- counts: samples 240,000, tokens cut 17",
        '| levers.graph | `"tuned"` |',
        "| levers.packing | `true` |",
        "## Scores\n\n| AI2D | 61 |",
        "That of the base model: `apache-2.0`.",
        "https://arxiv.org/abs/2511.19676",
        "@article{",
        "`0123456789abcdef`",
    ):
        assert words in card, words
    for words in ("a sample", "mlp.weight", "stand-in", "`empty`"):
        assert words not in card, words


def test_what_the_plan_says_of_itself_keeps_its_names():
    card = model_card(make_info(plan={**PLAN, "how_reached": "by ShortGPT, on the PPL"}))
    assert "reading `paper`. By ShortGPT, on the PPL.\n" in card


def test_the_levers_are_told_as_they_were_settled():
    recipe = {"name": "fast", "head": "chunked", "notes": ["packing: off, too wide"]}
    head = ["model.layers.1.mlp.weight", "lm_head.weight"]
    training = {**TRAINING, "recipe": recipe, "trained_parameters": head}
    card = model_card(make_info(training=training))
    assert '| recipe.head | `"chunked"` |' in card
    assert '| recipe.notes | `["packing: off, too wide"]` |' in card
    assert "| levers." not in card
    assert "with 2 layers and the output head fine-tuned" in card


def test_what_a_variant_is_not_is_not_told():
    pruned = model_card(make_info(training=None, variant="interlace-25"))
    assert "none (the plan has 1, 4)" in pruned
    assert "## Fine-tuning" not in pruned
    assert "## Data" not in pruned
    sparse = make_info(plan=None, training=None, sparsity={"method": "wanda_2_4", "sparsity": 0.5})
    card = ModelCard(model_card(sparse))
    assert card.data.tags == ["interlace", "pruned", "2:4-sparsity"]
    assert "2:4 sparse decoder weights by `wanda_2_4`" in card.content
    assert "## Layers" not in card.content
    tuned = make_info(plan={**PLAN, "drop": [], "method": "dense", "ratio": None}, num_layers=8)
    assert ModelCard(model_card(tuned)).data.tags == ["interlace"]
    assert "with 2 layers fine-tuned, 8 decoder layers in all" in model_card(tuned)


@pytest.mark.parametrize(
    ("changes", "standin", "reasons"),
    [
        ({"base": {**BASE, "source": "demo"}}, [], "stand-in models"),
        ({"data": {**DATA, "source": "demo"}}, [], "stand-in data"),
        ({}, ["stand-in benchmarks"], "stand-in benchmarks"),
    ],
)
def test_a_stand_in_says_so(changes, standin, reasons):
    card = ModelCard(model_card(make_info(**changes), standin=standin))
    assert f"> **This is a stand-in** ({reasons})" in card.content
    assert "stand-in" in card.data.tags


@given(st.sets(st.integers(0, 99)))
def test_ranges_name_exactly_the_numbers(numbers):
    found = []
    for part in filter(None, ranges(numbers).split(", ")):
        first, _, last = part.partition("-")
        found += range(int(first), int(last or first) + 1)
    assert found == sorted(numbers)


def write_base(folder, source, head):
    folder.mkdir()
    write_json(folder / "source.json", source)
    (folder / "README.md").write_text(f"---\n{head}\n---\n# A card\n")
    return base_record(folder)


def test_the_base_model_and_its_licence(tmp_path):
    source = {"source": "hub", "path": "org/Base", "revision": None, "resolved": "c" * 40}
    head = "license: other\nlicense_name: own\nlicense_link: LICENSE\nbase_model: org/Older"
    record = write_base(tmp_path / "a", source, head)
    assert record["path"] == "org/Base"
    assert record["license_name"] == "own"
    link = f"https://huggingface.co/org/Base/blob/{'c' * 40}/LICENSE"
    assert record["license_link"] == link
    card = model_card(make_info(base=record))
    assert f"[own]({link})" in card
    assert ModelCard(card).data.license == "other"
    assert ModelCard(card).data.base_model == "org/Base"


def test_a_folder_of_this_machine_is_named_by_its_last_part(tmp_path):
    source = {"source": "local", "path": "/home/someone/models/mine", "resolved": "1" * 16}
    record = write_base(tmp_path / "a", source, "tags: [x]")
    assert record["path"] == "mine"
    assert record["license"] is None
    card = model_card(make_info(base=record))
    assert "someone" not in card
    assert "whose card states none" in card


def test_a_base_without_card_or_source_has_neither(tmp_path):
    record = base_record(tmp_path)
    assert record["path"] == tmp_path.name
    assert (record["source"], record["license"]) == (None, None)


def test_a_card_that_is_no_yaml_is_refused_in_one_line(tmp_path):
    with pytest.raises(InputError, match=r"README\.md: its head is no YAML") as caught:
        write_base(tmp_path / "a", {"source": "hub", "path": "o/b"}, "license: [a")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("source", "expected"),
    [
        ("hf://datasets/org/data", ("hub", "org/data")),
        ("hf://datasets/org/data@main", ("hub", "org/data")),
        ("s3://bucket/data", ("address", "s3://bucket/data")),
        ("/home/someone/vision", ("local", "vision")),
        ("results/demo/demo/finevision", ("demo", "FineVision stand-in")),
    ],
)
def test_the_samples_are_told_as_they_were_drawn(tmp_path, source, expected):
    count = {"records": 7, "kept": 5, "images": 9, "calibration": 1}
    write_json(
        tmp_path / "samples.json",
        {
            "provenance": {"seed": 4},
            "source": source,
            "revision": "e" * 40,
            "settings": {"fraction": 0.5, "unit": "row", "max_images": 3, "max_turns": 5},
            "total": count,
            "subsets": {"docs": count},
        },
    )
    record = data_record(tmp_path)
    assert (record["source"], record["path"]) == expected
    assert (record["samples"], record["subsets"]) == (7, {"docs": 7})
    assert (record["seed"], record["revision"]) == (4, "e" * 40)
    assert "someone" not in json.dumps(record)
    assert model_card(make_info(data=record))


def test_samples_without_counts_have_no_record(tmp_path):
    assert data_record(tmp_path) is None
    assert "240,001 samples." in model_card(make_info(data=None))


def run_snippet(folder, monkeypatch, capsys):
    """Run the card's only Python snippet where it lies; return what it printed."""
    (code,) = re.findall(r"```python\n(.*?)```", (folder / "README.md").read_text(), re.S)
    monkeypatch.chdir(folder)
    capsys.readouterr()
    exec(code, {"__name__": "snippet"})
    return capsys.readouterr().out


def test_the_snippet_runs_on_a_pruned_checkpoint(tmp_path, monkeypatch, capsys):
    import numpy as np

    base = make_tiny_checkpoint(tmp_path / "base")
    model = load_model(base)
    drop_layers(model, [1, 4])
    info = {"model": "tiny", "variant": "random-25", "plan": None}
    save_checkpoint(model, load_processor(base), tmp_path / "out", info)
    assert json.loads((tmp_path / "out" / "interlace.json").read_text())["loads_with"] == (
        "AutoModelForImageTextToText"
    )
    tiny_image(np.random.default_rng(0)).save(tmp_path / "out" / "picture.jpg")
    shutil.rmtree(base)
    assert run_snippet(tmp_path / "out", monkeypatch, capsys).endswith("\n")


def test_the_snippet_runs_on_a_text_model(tmp_path, monkeypatch, capsys):
    model, tokenizer = tiny_model("llama"), make_tiny_tokenizer()
    save_checkpoint(model, tokenizer, tmp_path / "out", {"model": "llama", "variant": "x"})
    assert run_snippet(tmp_path / "out", monkeypatch, capsys).startswith("The capital of France is")
