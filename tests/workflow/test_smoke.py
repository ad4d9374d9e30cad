"""The whole DAG on the smoke configuration: once through SLURM where it is installed, undisturbed;
once, in part, by `make demo`, killed in every stage; both must end in the same results.
"""

import json
import os
import re
import shutil
import signal
import subprocess
import time
from pathlib import Path

import pytest
import yaml

from interlace.io import file_digest
from tests.workflow import slurm
from tests.workflow.run import checkout, snakemake

pytestmark = pytest.mark.slow

SMOKE = ("--configfile", "config/smoke.yaml")
SLURM = (
    "--profile", "profiles/slurm", "--slurm-no-account", "--slurm-status-command", "squeue",
    "--slurm-init-seconds-before-status-checks", "1", "--seconds-between-status-checks", "1",
    "--latency-wait", "10",
)  # fmt: skip
# Rules whose jobs, where one needs another, share a SLURM job: by itself each would take a start of
# Snakemake, a place in the queue and a look at it, which comes 10 s later every time. Not
# --group-components: Snakemake 9.27 may put a job into two of the groups that it makes of others.
TOGETHER = {
    "given": "demo_finevision plan_samples",
    "asked": "demo_benchmarks prepare_benchmarks_1",
    "drawn": "fetch_subset draw_samples samples_table contact_sheet",
    "scored": "score_windows merge_windows",
    "made": "plan figure_plan prune sparsify finetune figure_training evaluate_1",
}
ALONE = ("demo_model", "audit", "score_sleb", "ttft_standin_8b_0", "ttft_standin_4b_1", "table",
         "significance", "example_sheet", "figures_ttft")  # fmt: skip
GROUPS = (
    "--groups", *(f"{rule}={name}" for name, rules in TOGETHER.items() for rule in rules.split()),
    "--cores", "1",  # of a SLURM job: two of them run at a time
)  # fmt: skip

# What Snakemake says when a job of a stage begins; each stage is killed once.
KILLED_AT = (
    "Stand-in data:",
    "Samples: plan",
    "Samples: draw",
    "Samples: gather",
    "Scores standin_8b: similarity",
    "Scores standin_8b: shards merged",
    "SLEB's greedy search",
    "Plan interlace-25",
    "Fine-tune standin_8b",
    "Sparsify standin_8b",
    "Benchmarks: check",
    "Evaluate interlace-25-ft of standin_8b",
    "TTFT: dense and pruned",
    "Table 2",
    "Report:",
)


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory):
    """A finished smoke run; (its folder, how it was run, Snakemake's output)."""
    folder = checkout(tmp_path_factory.mktemp("undisturbed"))
    if slurm.missing():
        done, how = snakemake("all", "report", "--cores", "2", *SMOKE, cwd=folder), "local"
    else:
        with slurm.running_slurm(tmp_path_factory.mktemp("slurm")) as env:
            done = snakemake("all", "report", *SLURM, *GROUPS, *SMOKE, cwd=folder, env=env)
        how = "slurm"
    assert done.returncode == 0, done.stdout[-6000:]
    return folder, how, done.stdout


def results(folder: Path) -> Path:
    return folder / "results" / "smoke"


def test_tables_figures_and_report_are_there_and_say_stand_in(undisturbed):
    folder = results(undisturbed[0])
    for number in range(1, 7):
        for extension in ("csv", "md", "tex", "html"):
            text = (folder / "tables" / f"table{number}.{extension}").read_text()
            assert "stand-in" in text, f"table{number}.{extension}"
    for name in ("significance", "ttft"):
        assert "stand-in" in (folder / "tables" / f"{name}.md").read_text()
    assert "stand-in" in (folder / "examples" / "standin_8b.html").read_text()
    figures = [p for p in (folder / "figures").iterdir() if p.is_file()]
    names = {p.stem for p in figures}
    assert names == {
        *(f"figure2_{plan}_standin_8b" for plan in ("interlace-25", "sleb-25", "random-25", "dense")),
        "figure2_interlace-25_standin_4b",
        "figure3_finetuning", "figure4_similarity", "ttft_speedup", "ttft_breakdown",
        "ttft_tokens", "ttft_accuracy",
        *(f"training_{variant}-ft_standin_8b"
          for variant in ("interlace-25", "sleb-25", "random-25", "dense")),
        "training_interlace-25-ft_standin_4b", "training_overview",
    }  # fmt: skip
    assert {p.suffix for p in figures} == {".svg", ".pdf", ".png"}
    assert list((folder / "figures" / "samples").glob("*.png"))
    report = (folder / "report.html").read_text()
    assert "This run is a stand-in" in report
    for category in ("Tables", "Figures", "Samples", "Examples", "Audit of the paper"):
        assert category in report


def test_every_result_says_where_it_comes_from(undisturbed):
    folder = results(undisturbed[0])
    files = [*folder.glob("*/evaluation/*/*/*.json"), *folder.glob("*/ttft/*/*.json"),
             *folder.glob("*/plans/*.json"), *folder.glob("*/scores/*.json"),
             *folder.glob("*/checkpoints/*/interlace.json")]  # fmt: skip
    assert len(files) > 200
    for path in files:
        provenance = json.loads(path.read_text())["provenance"]
        assert set(provenance) == {
            "schema", "git_commit", "config_digest", "model_revision", "seed", "num_samples",
            "versions",
        }  # fmt: skip
        assert provenance["versions"]["torch"], path
    evaluation = json.loads(
        (folder / "standin_8b/evaluation/dense/limited/MIABench.json").read_text()
    )
    assert evaluation["fixture"] is True
    assert evaluation["grader"]["kind"] == "demo"
    assert evaluation["grader"]["model"] == "demo-rules-grader"


def test_a_second_run_finds_nothing_to_do(undisturbed):
    done = snakemake("all", "report", "-n", *SMOKE, cwd=undisturbed[0])
    assert done.returncode == 0, done.stdout
    assert "Nothing to be done" in done.stdout, done.stdout[-3000:]


@pytest.mark.slurm
@pytest.mark.skipif(slurm.missing() is not None, reason=slurm.missing() or "")
def test_the_jobs_went_through_slurm(undisturbed):
    _, how, output = undisturbed
    assert how == "slurm"
    # A job's folder of logs is named after its rule, a group's after its own name and some of its rules.
    sent = re.findall(r"submitted with SLURM jobid \d+ \(log: \S+/slurm_logs/([^/]+)/", output)
    assert {f"rule_{rule}" for rule in ALONE} <= set(sent)
    for name in TOGETHER:
        assert any(folder.startswith(f"group_{name}_") for folder in sent), name


def test_killed_in_every_stage_it_ends_in_the_same_results(undisturbed, tmp_path):
    if shutil.which("flock") is None or shutil.which("make") is None:
        pytest.skip("make and flock are needed")
    folder = checkout(tmp_path / "killed")
    config = yaml.safe_load((folder / "config" / "smoke.yaml").read_text())
    del config["models"]["standin_4b"]  # every stage once is enough
    config["evaluation"]["benchmarks"] = ["MMBench", "MIABench"]
    (folder / "killed.yaml").write_text(yaml.safe_dump(config | {"tables": [2]}))
    alive = list(KILLED_AT)
    while (stage := make_and_kill(folder, alive)) is not None:
        alive.remove(stage)
    assert alive == []  # every stage was killed once, the last attempt ran to its end
    ours, theirs = results(folder), results(undisturbed[0])
    assert (ours / "report.html").is_file()
    outcomes = [path.relative_to(ours) for path in ours.glob("*/evaluation/*/*/*.parquet")]
    assert len(outcomes) == 6 * 2
    for path in outcomes:
        assert (ours / path).read_bytes() == (theirs / path).read_bytes(), path
    for path in ours.glob("*/checkpoints/*/*.safetensors"):
        assert file_digest(path) == file_digest(theirs / path.relative_to(ours)), path
    leftovers = list(ours.rglob("*.partial"))
    assert leftovers == []


def make_and_kill(folder: Path, stages: list[str], delay_s: float = 1.0) -> str | None:
    """Start `make demo` on the smoke configuration; kill -9 all of it when a job of `stages` begins.

    Returns the stage it was killed in, or None if it ran to its end.
    """
    process = subprocess.Popen(
        ["make", "demo", "CONFIG=killed.yaml", "RUN=smoke"],
        cwd=folder, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
        text=True, start_new_session=True, env=os.environ | {"PYTHONUNBUFFERED": "1"},
    )  # fmt: skip
    seen = []
    with process.stdout:
        for line in process.stdout:
            seen.append(line)
            stage = next((s for s in stages if s in line), None)
            if stage is not None:
                time.sleep(delay_s)
                os.killpg(process.pid, signal.SIGKILL)
                process.wait()
                return stage
    assert process.wait() == 0, "".join(seen)[-6000:]
    return None
