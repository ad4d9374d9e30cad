"""What a benchmark that is added, or whose data change, makes Snakemake do: nothing for the others."""

import re
from pathlib import Path

import pytest
import yaml

from interlace.config import complete, load_schema
from interlace.config_docs import SCHEMA
from interlace.evaluation.benchmarks import BENCHMARKS
from interlace.grid import Grid
from tests.workflow.run import ROOT, checkout, snakemake

RULE = r"^((?:prepare|evaluate|ttft)_\w+) +(\d+)$"


def configured(folder, names):
    """Write a configuration with the benchmarks `names`; return its files and what they are made of."""
    config = yaml.safe_load((ROOT / "config" / "smoke.yaml").read_text())
    del config["models"]["standin_4b"]
    config["tables"] = [1, 4]
    config["evaluation"] |= {"benchmarks": names, "source": "data", "groups": 4}
    (folder / "few.yaml").write_text(yaml.safe_dump(config))
    grid = Grid(complete(config, load_schema(SCHEMA), {"standin_8b": 36}))
    made = [*grid.evaluation_files(), *grid.outcome_files(), *grid.ttft_files()]
    return made, [*made, *grid.benchmark_files()], grid


@pytest.fixture
def finished(tmp_path, monkeypatch):
    """A checkout whose evaluations and timings on two benchmarks count as made."""
    folder = checkout(tmp_path / "checkout")
    monkeypatch.chdir(folder)
    (folder / "data").mkdir()
    for name in ("AI2D", "POPE", "ChartQA"):
        (folder / "data" / f"{BENCHMARKS[name].dataset}.tsv").write_text(name)
    targets, files, grid = configured(folder, ["AI2D", "POPE"])
    for place in ("base", "checkpoints/interlace-25-ft"):
        Path(grid.path("standin_8b", place)).mkdir(parents=True)
    for file in map(Path, files):
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(file.name)
    done = snakemake(
        "--touch", "--force", "--cores", "1", "--configfile", "few.yaml", "--", *targets, cwd=folder
    )
    assert done.returncode == 0, done.stdout
    return folder


def done_again(folder, names):
    targets = configured(folder, names)[0]
    done = snakemake("-n", "--configfile", "few.yaml", "--", *targets, cwd=folder)
    assert done.returncode == 0, done.stdout
    return dict(re.findall(RULE, done.stdout, re.M))


def test_each_benchmark_is_evaluated_and_timed_by_itself(finished):
    assert done_again(finished, ["POPE"]) == {}
    assert done_again(finished, ["ChartQA", "AI2D", "POPE"]) == {
        "prepare_benchmarks_1": "1", "evaluate_1": "2", "ttft_standin_8b_0": "1",
    }  # fmt: skip
    (finished / "data" / "POPE.tsv").write_text("other questions")
    assert done_again(finished, ["AI2D", "POPE"]) == {
        "prepare_benchmarks_2": "1", "evaluate_2": "2", "ttft_standin_8b_1": "1",
    }  # fmt: skip
