"""A new pruner is one file and one line of the registry: everything else follows."""

import json
import re

import pytest
import yaml

from tests.workflow.run import checkout, snakemake

TOY = '''"""Toy: drop from the front, tune what follows."""

from interlace.selection.method import Choice, Request, tune_after


def choose(request: Request) -> Choice:
    """Drop the first K free layers."""
    drop = request.free()[: request.num_dropped]
    return Choice(drop, tune_after(drop, request), "from the front", order=drop)
'''


@pytest.fixture(scope="module")
def copy(tmp_path_factory):
    """A checkout with a method of its own, and a configuration that compares it."""
    folder = checkout(tmp_path_factory.mktemp("toy"))
    selection = folder / "src" / "interlace" / "selection"
    (selection / "methods" / "toy2.py").write_text(TOY)
    registry = selection / "registry.py"
    text = registry.read_text()
    text = text.replace("    sleb,\n)", "    sleb,\n    toy2,\n)")
    text = text.replace("\n}\n", '\n    "toy2": Method(toy2.choose, "Toy 2"),\n}\n', 1)
    registry.write_text(text)
    config = yaml.safe_load((folder / "config" / "smoke.yaml").read_text())
    del config["models"]["standin_4b"]
    config["tables"] = [2]
    config["experiments"] = {"baselines": ["toy2"]}
    (folder / "toy.yaml").write_text(yaml.safe_dump(config))
    return folder


def test_the_workflow_plans_prunes_tunes_and_evaluates_it(copy):
    done = snakemake("-n", "--configfile", "toy.yaml", cwd=copy)
    assert done.returncode == 0, done.stdout
    for job in ("Plan toy2-25 for standin_8b", "Evaluate toy2-25 of", "Evaluate toy2-25-ft of"):
        assert job in done.stdout
    files = snakemake("--summary", "--configfile", "toy.yaml", cwd=copy).stdout
    for made in (
        r"standin_8b/plans/toy2-25\.json",
        r"figures/figure2_toy2-25_standin_8b\.png",
        r"standin_8b/checkpoints/toy2-25",
        r"standin_8b/checkpoints/toy2-25-ft",
        r"standin_8b/evaluation/toy2-25/limited/AI2D\.json",
        r"standin_8b/evaluation/toy2-25-ft/limited/AI2D\.json",
        r"standin_8b/ttft/toy2-25/AI2D\.json",
    ):
        assert re.search(rf"^results/smoke/{made}\t", files, re.M), made


def test_its_plan_and_figure_are_made(copy):
    folder = copy / "results" / "smoke"
    plan = folder / "standin_8b" / "plans" / "toy2-25.json"
    figure = folder / "figures" / "figure2_toy2-25_standin_8b.svg"
    done = snakemake(
        *(str(path.relative_to(copy)) for path in (plan, figure)),
        "--cores", "1", "--configfile", "toy.yaml", cwd=copy,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout[-4000:]
    made = json.loads(plan.read_text())
    assert (made["method"], made["drop"]) == ("toy2", list(range(9)))
    assert "# Plan: Toy 2 at 25 %" in plan.with_suffix(".md").read_text()
    assert figure.is_file()


def test_a_mistyped_name_is_answered_with_it(copy):
    text = (copy / "toy.yaml").read_text().replace("toy2", "toy3")
    (copy / "wrong.yaml").write_text(text)
    done = snakemake("-n", "--configfile", "wrong.yaml", cwd=copy)
    assert done.returncode != 0
    assert "did you mean 'toy2'?" in done.stdout
