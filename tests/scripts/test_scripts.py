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

from tests.tiny import make_tiny_checkpoint, make_tiny_finevision

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
        for field in ("input", "output", "params", "wildcards", "log"):
            setattr(self, field, Named(given.get(field, [])))
        self.threads = 1

script, given = sys.argv[1], json.loads(sys.argv[2])
runpy.run_path(script, init_globals={"snakemake": Job(given)})
"""


def run_script(name, log, **given):
    """Run a script with a stand-in for Snakemake's object; return (finished process, log text)."""
    given["log"] = [str(log)]
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


def test_draw_samples_then_its_table(tmp_path):
    make_tiny_finevision(tmp_path / "data")
    done, log = run_script(
        "draw_samples", tmp_path / "a.log",
        output={"samples": str(tmp_path / "samples")},
        params={"settings": DATA, "seed": 3, "source": str(tmp_path / "data")},
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
    done, log = run_script(
        "draw_samples", tmp_path / "a.log",
        output={"samples": str(tmp_path / "samples")},
        params={"settings": DATA, "seed": 3, "source": str(tmp_path / "empty")},
    )  # fmt: skip
    assert done.returncode == 1
    assert done.stderr.count("\n") == 1
    assert str(tmp_path / "empty") in done.stderr
    assert log.startswith("error: ")
    assert not (tmp_path / "samples").exists()


@pytest.fixture(scope="module")
def scored(tmp_path_factory):
    """A tiny checkpoint of 12 layers and score files made up for it."""
    folder = tmp_path_factory.mktemp("scored")
    make_tiny_checkpoint(folder / "base", layers=12)
    (folder / "base" / "source.json").write_text('{"resolved": "abc"}')
    (folder / "scores").mkdir()
    for size in (1, 2, 3):
        windows = [
            {"start": i, "token_mean": value, "sample_mean": value, "text_mean": value,
             "visual_mean": value}
            for i in range(12 - size + 1)
            for value in [0.5 + ((i * 7) % 12) / 30]
        ]  # fmt: skip
        body = {"provenance": {}, "model": "tiny", "size": size, "num_layers": 12,
                "num_samples": 4, "windows": windows}  # fmt: skip
        (folder / "scores" / f"pack{size}.json").write_text(json.dumps(body))
    return folder


def plan(scored, out, method_ratio):
    return run_script(
        "plan", out / "plan.log",
        input={
            "base": str(scored / "base"),
            "packs": [str(scored / "scores" / f"pack{k}.json") for k in (1, 2, 3)],
        },
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
        "figure_triplets", tmp_path / "b.log",
        input={
            "plan": str(tmp_path / "plan.json"),
            "pack1": str(scored / "scores" / "pack1.json"),
            "pack3": str(scored / "scores" / "pack3.json"),
        },
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


def test_base_model_from_a_folder(scored, tmp_path):
    done, log = run_script(
        "base_model", tmp_path / "a.log",
        output=[str(tmp_path / "base")],
        params={"model": {"source": "local", "path": str(scored / "base"), "revision": None}},
    )  # fmt: skip
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
