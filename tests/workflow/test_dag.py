"""What can be known before any job runs."""

import json
import re
import shutil
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest
import yaml

from tests.workflow.run import ROOT, checkout, snakemake

JOBS_OF_THE_PAPER = {
    "base_model": 2, "plan_samples": 1, "draw_samples": 1, "score_windows": 2, "score_sleb": 1, "plan": 14,
    "finetune": 14, "prune": 1, "sparsify": 2, "table": 6,
    **{f"evaluate_{group}": 22 for group in (1, 2, 3, 4)}, "significance": 1, "example_sheet": 1,
}  # fmt: skip

# The paper's DAG, made where torch can't be imported.
PLAN = """
import json, sys
sys.modules["torch"] = None
from pathlib import Path
from snakemake.api import SnakemakeApi
from snakemake.settings.types import ConfigSettings, OutputSettings, ResourceSettings
from snakemake_executor_plugin_slurm.utils import set_gres_string
with SnakemakeApi(OutputSettings(quiet={"all"})) as api:
    workflow = api.workflow(
        # As profiles/slurm has it: no bound on cores, which would hold for jobs on the cluster too.
        resource_settings=ResourceSettings(nodes=64),
        config_settings=ConfigSettings(configfiles=[Path("config/paper.yaml").resolve()]),
        snakefile=Path("Snakefile").resolve(),
    )
    workflow.dag().summary()
    jobs = [
        [job.rule.name, job.threads, dict(job.resources.items()), set_gres_string(job)]
        for job in workflow._workflow.dag.jobs
    ]
Path(sys.argv[1]).write_text(json.dumps(jobs, default=str))
"""


@pytest.fixture(scope="module")
def paper(tmp_path_factory):
    """The paper's jobs: (rule, threads, resources, what sbatch is asked for besides) of each."""
    out = tmp_path_factory.mktemp("paper") / "jobs.json"
    done = subprocess.run(
        [sys.executable, "-c", PLAN, str(out)], cwd=ROOT, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return json.loads(out.read_text())


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A checkout in which nothing was run."""
    return checkout(tmp_path_factory.mktemp("checkout"))


def test_the_paper_is_planned_without_torch(paper):
    count = Counter(rule for rule, *_ in paper)
    assert {rule: count[rule] for rule in JOBS_OF_THE_PAPER} == JOBS_OF_THE_PAPER
    assert sum(rule.startswith("ttft_qwen3_vl_") for rule in count) == 2 * 4


def test_every_gpu_job_states_gpu_memory_and_runtime(paper):
    stages = ("score_", "finetune", "sparsify", "evaluate_", "ttft_")
    gpu_jobs = [job for job in paper if job[0].startswith(stages)]
    assert len(gpu_jobs) == 2 + 1 + 14 + 2 + 4 * 22 + 2 * 4
    for rule, threads, resources, asked in gpu_jobs:
        assert (resources["gpu"], asked) == (1, " --gpus=1"), rule
        assert resources["mem_mb"] >= 64000, rule
        assert resources["runtime"] >= 480, rule
        assert threads >= 8, rule
    others = [job for job in paper if job not in gpu_jobs]
    assert not any(resources.get("gpu") or asked for _, _, resources, asked in others)


def test_the_slurm_profile_bounds_no_cores():
    profile = yaml.safe_load((ROOT / "profiles" / "slurm" / "config.yaml").read_text())
    assert "cores" not in profile
    assert profile["executor"] == "slurm"


def test_targets_one_can_stop_at_exist():
    targets = (
        "samples conversations scores plans checkpoints evaluation ttft tables figures examples"
    )
    targets = [*targets.split(), "report", *(f"table{number}" for number in range(1, 7))]
    text = "".join(p.read_text() for p in (ROOT / "workflow" / "rules").glob("*.smk"))
    assert {*targets} <= {*re.findall(r"^rule (\w+):", text, re.M)}


def test_every_rule_has_its_script_and_every_script_its_rule():
    rules = "".join(p.read_text() for p in (ROOT / "workflow" / "rules").glob("*.smk"))
    used = set(re.findall(r'"\.\./scripts/(\w+\.py)"', rules))
    assert used == {p.name for p in (ROOT / "workflow" / "scripts").glob("*.py")}


def test_rules_hold_no_functions():
    for path in [ROOT / "Snakefile", *(ROOT / "workflow" / "rules").glob("*.smk")]:
        assert not re.search(r"^\s*def ", path.read_text(), re.M), path


def test_a_mistake_in_the_configuration_is_one_line(folder):
    config = yaml.safe_load((ROOT / "config" / "smoke.yaml").read_text()) | {"sede": 1}
    (folder / "wrong.yaml").write_text(yaml.safe_dump(config, sort_keys=False))
    done = snakemake("-n", "--configfile", "wrong.yaml", cwd=folder)
    assert done.returncode != 0
    (line,) = [line for line in done.stdout.splitlines() if line.startswith("interlace: ")]
    assert "config: unknown key 'sede' at top level; did you mean 'seed'?" in line
    assert "Traceback" not in done.stdout


@pytest.mark.skipif(any(Path("/dev").glob("nvidia[0-9]*")), reason="this machine has a GPU")
def test_the_paper_needs_a_gpu(folder):
    done = snakemake("plans", "--cores", "1", "--configfile", "config/paper.yaml", cwd=folder)
    assert done.returncode != 0
    assert "this machine has none" in done.stdout
    assert not list(folder.glob(".snakemake/locks/*"))


def test_a_hosted_grader_needs_its_key_before_anything_runs(folder):
    config = yaml.safe_load((ROOT / "config" / "smoke.yaml").read_text())
    config["evaluation"]["grader"] = {
        "kind": "openai", "base_url": "https://grader.example/v1", "model": "m", "key_env": "NO_KEY",
    }  # fmt: skip
    (folder / "graded.yaml").write_text(yaml.safe_dump(config, sort_keys=False))
    done = snakemake("table6", "--cores", "1", "--configfile", "graded.yaml", cwd=folder)
    assert done.returncode != 0
    assert "NO_KEY" in done.stdout
    assert "Finished jobid" not in done.stdout
    assert not list(folder.glob(".snakemake/locks/*"))


def test_make_leaves_the_lock_of_another_snakemake_alone(folder):
    if shutil.which("flock") is None or shutil.which("make") is None:
        pytest.skip("make and flock are needed")
    lock = folder / ".snakemake" / "locks" / "0.input.lock"
    lock.parent.mkdir(parents=True, exist_ok=True)
    lock.touch()
    done = subprocess.run(["make", "demo"], cwd=folder, capture_output=True, text=True)
    assert done.returncode != 0
    assert "--unlock" in done.stderr
    assert lock.exists()
    lock.unlink()
