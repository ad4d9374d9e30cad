"""The configuration: defaults, and one clear line for every mistake."""

import copy
import re
from pathlib import Path

import pytest
import yaml

from interlace.config import complete, load_schema, standin_reasons
from interlace.config_docs import SCHEMA, describe
from interlace.environment import accelerator_missing
from interlace.errors import InputError
from interlace.selection.registry import METHODS

ROOT = Path(__file__).resolve().parents[2]
DEMO_MODELS = {"standin_8b": 36, "standin_4b": 36}
CONFIGS = ("config.yaml", "config.yaml methods.yaml", "paper.yaml", "smoke.yaml")


@pytest.fixture(scope="module")
def schema():
    return load_schema(SCHEMA)


@pytest.fixture
def demo():
    return yaml.safe_load((ROOT / "config" / "config.yaml").read_text())


@pytest.fixture(autouse=True)
def _at_root(monkeypatch):
    monkeypatch.chdir(ROOT)


def read(*names):
    """Return shipped files, the later laid over the earlier at the top level."""
    bodies = [yaml.safe_load((ROOT / "config" / name).read_text()) for name in names]
    return {key: value for body in bodies for key, value in body.items()}


@pytest.mark.parametrize("names", CONFIGS)
def test_shipped_configs_are_valid_and_complete(schema, names):
    config = complete(read(*names.split()), schema, DEMO_MODELS)
    assert set(config) == set(schema["properties"])
    assert complete(copy.deepcopy(config), schema, DEMO_MODELS) == config


def test_defaults_are_the_papers_recipe(schema):
    config = complete(yaml.safe_load((ROOT / "config" / "paper.yaml").read_text()), schema)
    tune = config["finetune"]
    assert (tune["learning_rate"], tune["warmup_ratio"], tune["weight_decay"]) == (1e-5, 0.03, 0)
    assert tune["micro_batch"] * tune["accumulation"] == 32
    assert (tune["max_length"], tune["precision"], tune["epochs"]) == (8192, "bfloat16", 1)
    assert config["data"]["fraction"] == 0.01
    assert (config["data"]["max_images"], config["data"]["max_turns"]) == (3, 5)
    assert config["evaluation"]["modes"] == {"cot": 16384, "limited": 50}
    assert len(config["evaluation"]["benchmarks"]) == 12


def test_every_key_has_a_description(schema):
    def walk(node, place):
        for key, sub in node.get("properties", {}).items():
            assert sub.get("description"), f"{place}.{key}"
            walk(sub, f"{place}.{key}")
        extra = node.get("additionalProperties")
        if isinstance(extra, dict):
            walk(extra, f"{place}.*")
        elif "properties" in node:
            assert extra is False, f"{place} lets unknown keys through"

    walk(schema, "config")


def test_readme_of_the_configuration_is_written_from_the_schema(schema):
    assert (ROOT / "config" / "README.md").read_text() == describe(schema)


def test_methods_come_from_the_registry(schema):
    experiments = schema["properties"]["experiments"]["properties"]
    assert set(experiments["method"]["enum"]) == set(METHODS) - {"dense"}
    assert experiments["ablations"]["items"]["enum"] == experiments["method"]["enum"]
    assert experiments["baselines"]["items"]["enum"][:2] == ["wanda_2_4", "magnitude_2_4"]
    assert set(experiments["baselines"]["items"]["enum"][2:]) == set(METHODS) - {"dense"}


def test_the_methods_configuration_compares_every_pruner(schema):
    config = read("config.yaml", "methods.yaml")
    experiments = complete(config, schema, DEMO_MODELS)["experiments"]
    assert {*experiments["baselines"], "interlace"} == {
        *METHODS, "wanda_2_4", "magnitude_2_4",
    } - {"dense"}  # fmt: skip


@pytest.mark.parametrize(
    ("plan", "message"),
    [
        ({}, "plan.reading: models.standin_8b.scores are one mean per sample"),
        ({"reading": "released", "modality": "text"}, "set plan.modality: all"),
        ({"reading": "released", "subsets": ["a"]}, "set plan.subsets: null"),
        ({"reading": "released"}, None),
    ],
)
def test_imported_scores_answer_the_released_reading_only(schema, demo, tmp_path, plan, message):
    for size in (1, 2, 3):
        (tmp_path / f"m_d_pack{size}_hidden_state_similarities.json").write_text("{}")
    demo["models"]["standin_8b"]["scores"] = str(tmp_path)
    demo["plan"] = plan
    if message is None:
        complete(demo, schema, DEMO_MODELS)
    else:
        with pytest.raises(InputError, match=message):
            complete(demo, schema, DEMO_MODELS)


@pytest.mark.parametrize("longest", [3, 9, 10, None, 37])
def test_windows_are_as_long_as_the_planned_methods_need(schema, demo, longest):
    demo["scoring"] = {"max_window": longest}
    demo["tables"] = [2]
    demo["experiments"] = {"baselines": ["shortgpt", "llm_streamline"], "ratio": 25}
    message = {
        3: "scoring.max_window: 3; llm_streamline at 25 % of the 36 layers of standin_8b needs "
        "windows of 10 layers; use 10 or more, or null",
        37: "scoring.max_window: 37; standin_8b has 36 layers: use at most 36",
    }
    message[9] = message[3].replace("max_window: 3;", "max_window: 9;")
    if longest in message:
        with pytest.raises(InputError, match=re.escape(message[longest])):
            complete(demo, schema, DEMO_MODELS)
    else:
        complete(demo, schema, DEMO_MODELS)


def test_windows_may_be_short_where_no_method_needs_longer_ones(schema, demo):
    demo["scoring"] = {"max_window": 3}
    demo["experiments"] = {"baselines": ["shortgpt"], "ratio": 25}
    complete(demo, schema, DEMO_MODELS)
    demo["experiments"] = {"baselines": ["llm_streamline"], "ratio": 25}
    demo["tables"] = [1]  # without the table that compares the baselines, no plan of it is made
    complete(demo, schema, DEMO_MODELS)


@pytest.mark.parametrize("source", ["demo", "hub"])
def test_imported_scores_hold_no_long_windows(schema, demo, tmp_path, source):
    for size in (1, 2, 3):
        (tmp_path / f"m_d_pack{size}_hidden_state_similarities.json").write_text("{}")
    demo["models"]["standin_8b"] |= {"scores": str(tmp_path), "source": source}
    demo["plan"] = {"reading": "released"}
    demo["experiments"] = {"baselines": ["llm_streamline"]}
    message = "models.standin_8b.scores: llm_streamline goes by longer windows than the imported"
    with pytest.raises(InputError, match=re.escape(message)):
        complete(demo, schema, DEMO_MODELS)


MISTAKES = [
    (lambda c: c.update(sede=1), "unknown key 'sede' at top level; did you mean 'seed'?"),
    (lambda c: c["finetune"].update(learning_rat=1), "unknown key 'learning_rat' at finetune"),
    (lambda c: c.update(seed="a"), "seed: 'a' is not of type 'integer'"),
    (lambda c: c.pop("run"), "'run' is a required property"),
    (lambda c: c["evaluation"].update(benchmarks=["AI2"]), "did you mean 'AI2D'?"),
    (lambda c: c.update(experiments={"baselines": ["slebb"]}), "did you mean 'sleb'?"),
    (lambda c: c.update(experiments={"method": "shortgp"}), "did you mean 'shortgpt'?"),
    (lambda c: c.update(experiments={"method": "dense"}), "experiments.method: 'dense' is unknown"),
    (lambda c: c.update(plan={"modality": "image"}), "plan.modality: 'image' is unknown"),
    (lambda c: c.update(plan={"subsets": []}), "plan.subsets"),
    (lambda c: c.update(experiments={"primary": "8b"}), "experiments.primary: '8b' is no key"),
    (lambda c: c.update(experiments={"ratios": [10, 2]}), "experiments.ratios[1]: 2 % of the 36"),
    (lambda c: c.update(experiments={"ratio": 50}), "experiments.ratio: 50 % is more than a third"),
    (
        lambda c: c["models"]["standin_8b"].update(path="tiny"),
        "'tiny' is no base model of the demo",
    ),
    (
        lambda c: c["models"]["standin_8b"].update(source="local", path="nowhere"),
        "nowhere holds no config.json",
    ),
    (lambda c: c["data"].update(source="local", path="nowhere"), "nowhere: no such folder"),
    (lambda c: c["data"].update(source="local", path="docs"), "docs holds no <subset>/*.parquet"),
    (lambda c: c["evaluation"].update(grader={"kind": "none"}), "MIABench needs a grader"),
    (lambda c: c["evaluation"].update(grader={"kind": "openai"}), "needs base_url and model"),
    (lambda c: c["evaluation"].update(source="docs"), "AI2D_TEST.tsv: no such file"),
    (
        lambda c: c["evaluation"].update(
            grader={"kind": "none", "extract": True}, benchmarks=["AI2D"]
        ),
        "evaluation.grader.extract: there is no grader",
    ),
    (
        lambda c: c["evaluation"]["grader"].update(budget=5),
        "evaluation.grader.price: budget needs it",
    ),
    (
        lambda c: c["evaluation"]["grader"].update(key_env="sk-canary"),
        "evaluation.grader.key_env: give the name of an environment variable",
    ),
    (
        lambda c: c["evaluation"]["grader"].update(base_url="https://me:canary@host/v1"),
        "evaluation.grader.base_url: give an address",
    ),
    (
        lambda c: c["evaluation"].update(pixels={"OCRBench": {"max_pixels": 9000}}),
        "evaluation.pixels.OCRBench.max_pixels: 9000 is below 102400",
    ),
    (
        lambda c: c.update(experiments={"seeds": [1, 0]}),
        "experiments.seeds: 0 is the run's own seed",
    ),
    (lambda c: c["finetune"].update(deepspeed="x.json"), "x.json: no such file"),
    (lambda c: c["models"].update(conversations=c["models"]["standin_8b"]), "other files under"),
    (
        lambda c: c["evaluation"].update(pixels={"AI2": {"max_pixels": 9000}}),
        "evaluation.pixels: 'AI2' is unknown; did you mean 'AI2D'?",
    ),
    (
        lambda c: c["evaluation"].update(pixels={"AI2D": {"max_pixel": 9000}}),
        "unknown key 'max_pixel' at evaluation.pixels.AI2D; did you mean 'max_pixels'?",
    ),
    (
        lambda c: c["data"].update(source="address", path="https://me:canary@host/data"),
        "data.path: an address without password",
    ),
    (lambda c: c.update(experiments={"ratios": [0]}), "experiments.ratios[0]: 0 is less than"),
    (
        lambda c: c["evaluation"].update(
            grader={"kind": "openai", "model": "m", "base_url": "http://[x"}
        ),
        "evaluation.grader.base_url",
    ),
]


@pytest.mark.parametrize(("mistake", "message"), MISTAKES, ids=[m for _, m in MISTAKES])
def test_a_mistake_gives_one_line_that_names_the_place(schema, demo, mistake, message):
    mistake(demo)
    with pytest.raises(InputError) as raised:
        complete(demo, schema, DEMO_MODELS)
    text = str(raised.value)
    assert message in text
    assert "canary" not in text
    assert "\n" not in text


def test_gpu_jobs_on_a_machine_without_gpu_are_refused(schema, monkeypatch):
    paper = complete(yaml.safe_load((ROOT / "config" / "paper.yaml").read_text()), schema)
    monkeypatch.setattr("interlace.environment.shutil.which", lambda _: None)
    monkeypatch.setattr("interlace.environment.Path.glob", lambda *_: iter(()))
    assert "this machine has none" in accelerator_missing(paper)
    for stage in paper["resources"].values():
        stage["gpu"] = 0
    assert accelerator_missing(paper) is None


def test_standin_reasons(schema, demo):
    paper = complete(yaml.safe_load((ROOT / "config" / "paper.yaml").read_text()), schema)
    assert standin_reasons(paper) == []
    assert len(standin_reasons(complete(demo, schema, DEMO_MODELS))) == 4
