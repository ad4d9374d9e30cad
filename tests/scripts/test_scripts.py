"""Scripts are glue: what Snakemake hands over reaches the package, and a mistake is one line.

Each runs in a process of its own, since a script takes over its standard streams. The heavy ones
(scores, fine-tuning, evaluation, TTFT) run in tests/workflow.
"""

import json
import subprocess
import sys
from pathlib import Path

import pyarrow.parquet as pq
import pytest
import yaml

from interlace.scoring.store import write_windows
from interlace.stamps import weights_record
from tests.tiny import make_tiny_checkpoint, make_tiny_finevision
from tests.unit.score_tables import random_windows

ROOT = Path(__file__).resolve().parents[2]

DRIVER = """
import json, runpy, sys

class Named(list):
    '''What Snakemake hands to a script: a list whose items may have names.'''
    def __init__(self, value):
        super().__init__(value.values() if isinstance(value, dict) else value)
        self.names = value if isinstance(value, dict) else {}
    def __getattr__(self, name):
        try:
            return self.names[name]
        except KeyError:
            raise AttributeError(name) from None
    def get(self, name, default=None):
        return self.names.get(name, default)

class Job:
    def __init__(self, given):
        for field in ("input", "output", "params", "wildcards", "log", "resources"):
            setattr(self, field, Named(given.get(field, [])))
        self.config = given.get("config", {})
        self.threads = 1

script, given = sys.argv[1], json.loads(sys.argv[2])
runpy.run_path(script, init_globals={"snakemake": Job(given)})
"""


def run_script(name, log, **given):
    """Run a script with a stand-in for Snakemake's object; return (finished process, log text)."""
    given = {"resources": {"gpu": 0}} | given | {"log": [str(log)]}
    done = subprocess.run(
        [sys.executable, "-c", DRIVER, str(ROOT / "workflow" / "scripts" / f"{name}.py"),
         json.dumps(given)],
        capture_output=True, text=True, check=False, cwd=ROOT,
    )  # fmt: skip
    return done, log.read_text()


DATA = {
    "fraction": 0.5, "min_per_subset": 1, "max_images": 3, "max_turns": 5,
    "calibration_fraction": 0.5,
}  # fmt: skip


def plan_samples(tmp_path, source):
    plan = tmp_path / "sampling" / "plan"
    return run_script(
        "plan_samples", tmp_path / "plan.log",
        output={"plan": str(plan / "plan.json"), "index": str(plan / "index.parquet")},
        params={"settings": DATA, "seed": 3, "source": str(source)},
        config={"data": {"workers": 2}},
    )  # fmt: skip


def test_a_plan_its_subsets_their_samples_and_the_table(tmp_path):
    make_tiny_finevision(tmp_path / "data")
    done, log = plan_samples(tmp_path, tmp_path / "data")
    assert done.returncode == 0, log
    assert "row_group" in done.stderr, "the plan is said where a person looks"
    plan = str(tmp_path / "sampling" / "plan" / "plan.json")
    folders = []
    for subset in ("text_tiny", "tiny_pairs(a+b)"):
        folders.append(str(tmp_path / "sampling" / "subsets" / subset))
        done, log = run_script(
            "fetch_subset", tmp_path / "fetch.log",
            input={"plan": plan}, output=[folders[-1]], wildcards={"subset": subset},
            params={"settings": DATA, "seed": 3, "spool": str(tmp_path / "spool" / subset)},
            config={"data": {"workers": 2}},
        )  # fmt: skip
        assert done.returncode == 0, log
    done, log = run_script(
        "draw_samples", tmp_path / "a.log",
        input={"plan": plan, "subsets": folders},
        output={"samples": str(tmp_path / "samples")},
        params={"settings": DATA, "seed": 3},
    )  # fmt: skip
    assert done.returncode == 0, log
    assert pq.read_table(tmp_path / "samples" / "manifest.parquet").num_rows > 0
    done, log = run_script(
        "samples_table", tmp_path / "b.log",
        input=[str(tmp_path / "samples")],
        output=[str(tmp_path / "tables" / "samples.html")],
        params={"standin": ["stand-in data"]},
    )  # fmt: skip
    assert done.returncode == 0, log
    assert "stand-in" in (tmp_path / "tables" / "samples.html").read_text()
    assert (tmp_path / "tables" / "samples.csv").exists()


def test_a_folder_without_samples_is_one_line(tmp_path):
    (tmp_path / "empty").mkdir()
    done, log = plan_samples(tmp_path, tmp_path / "empty")
    assert done.returncode == 1
    assert done.stderr.count("\n") == 1
    assert str(tmp_path / "empty") in done.stderr
    assert log.startswith("error: ")
    assert not (tmp_path / "sampling" / "plan").exists()


@pytest.fixture(scope="module")
def scored(tmp_path_factory):
    """A tiny checkpoint of 12 layers and score files made up for it."""
    folder = tmp_path_factory.mktemp("scored")
    make_tiny_checkpoint(folder / "base", layers=12)
    (folder / "base" / "source.json").write_text('{"resolved": "abc"}')
    windows = random_windows(12)
    windows.info.update({"model": "tiny"} | weights_record(folder / "base"))
    write_windows(folder / "windows.parquet", windows)
    return folder


def plan(scored, out, method_ratio):
    return run_script(
        "plan", out / "plan.log",
        input={"base": str(scored / "base"), "windows": str(scored / "windows.parquet")},
        output={"plan": str(out / "plan.json"), "sheet": str(out / "plan.md")},
        params={"settings": {"reading": "paper", "protect": []}, "seed": 0},
        wildcards={"model": "tiny", "plan": method_ratio},
    )  # fmt: skip


def test_plan_and_its_figure(scored, tmp_path):
    done, log = plan(scored, tmp_path, "interlace-25")
    assert done.returncode == 0, log
    made = json.loads((tmp_path / "plan.json").read_text())
    assert (made["method"], made["ratio"], len(made["drop"])) == ("interlace", 25, 3)
    assert "interlace" in (tmp_path / "plan.md").read_text().lower()
    stem = tmp_path / "figures" / "figure2"
    done, log = run_script(
        "figure_plan", tmp_path / "b.log",
        input=[str(tmp_path / "plan.json")],
        output=[f"{stem}.svg"],
        params={"label": "tiny", "standin": ["stand-in models"]},
    )  # fmt: skip
    assert done.returncode == 0, log
    for extension in ("svg", "pdf", "png"):
        assert stem.with_suffix(f".{extension}").stat().st_size > 1000


def test_a_plan_that_drops_no_layer_is_refused(scored, tmp_path):
    done, _ = plan(scored, tmp_path, "interlace-5")
    assert done.returncode == 1
    assert done.stderr.startswith("interlace: ")
    assert done.stderr.count("\n") == 1
    assert not (tmp_path / "plan.json").exists()


@pytest.mark.parametrize("ratio", [25, 5])
def test_base_model_from_a_folder(scored, tmp_path, ratio):
    done, log = run_script(
        "base_model", tmp_path / "a.log",
        output=[str(tmp_path / "base")],
        params={"model": {"source": "local", "path": str(scored / "base"), "revision": None}},
        wildcards={"model": "tiny"},
        config={
            "run": "x", "models": {"tiny": {"scores": None}}, "tables": [],
            "experiments": {"ratio": 25, "ratios": [ratio]}, "plan": {"protect": []},
            "scoring": {"max_window": None},
        },
    )  # fmt: skip
    if ratio == 5:
        assert done.returncode == 1
        assert "experiments.ratios[0]: 5 % of the 12 layers of tiny drops no layer" in done.stderr
        return
    assert done.returncode == 0, log
    assert (tmp_path / "base" / "config.json").is_file()
    assert json.loads((tmp_path / "base" / "source.json").read_text())["source"] == "local"


def test_audit(tmp_path):
    done, log = run_script("audit", tmp_path / "a.log", output=[str(tmp_path / "audit.html")])
    assert done.returncode == 0, log
    assert "Table" in (tmp_path / "audit.md").read_text()


def test_effective_config(tmp_path):
    done, log = run_script(
        "effective_config", tmp_path / "a.log",
        output=[str(tmp_path / "config.yaml")], params={"config": {"run": "x", "seed": 1}},
    )  # fmt: skip
    assert done.returncode == 0, log
    assert yaml.safe_load((tmp_path / "config.yaml").read_text()) == {"run": "x", "seed": 1}
