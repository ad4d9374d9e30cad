"""What can be known before any job runs."""

import re
from pathlib import Path

import pytest
import yaml

from tests.workflow.run import ROOT, snakemake

JOBS_OF_THE_PAPER = {
    "base_model": 2, "plan_samples": 1, "draw_samples": 1, "score_windows": 2, "score_sleb": 1, "plan": 14,
    "finetune": 14, "prune": 1, "sparsify": 2, "table": 6,
    **{f"evaluate_{group}": 22 for group in (1, 2, 3, 4)}, "significance": 1, "example_sheet": 1,
}  # fmt: skip


@pytest.fixture(scope="module")
def paper(tmp_path_factory):
    """Dry run of the whole paper with a torch in the way that can't be imported."""
    trap = tmp_path_factory.mktemp("trap")
    (trap / "torch.py").write_text("raise ImportError('torch was imported while the DAG was made')")
    import os

    env = os.environ | {"PYTHONPATH": str(trap)}
    done = snakemake("-n", "-p", "--configfile", "config/paper.yaml", env=env)
    assert done.returncode == 0, done.stdout
    return done.stdout


def test_the_paper_is_planned_without_torch(paper):
    for rule, count in JOBS_OF_THE_PAPER.items():
        assert re.search(rf"^{rule} +{count}$", paper, re.M), rule
    assert len(set(re.findall(r"^ttft_qwen3_vl_[48]b_\d+", paper, re.M))) == 2


def test_every_gpu_job_states_gpu_memory_and_runtime(monkeypatch):
    from snakemake.api import SnakemakeApi
    from snakemake.settings.types import ConfigSettings, OutputSettings, ResourceSettings

    monkeypatch.chdir(ROOT)
    with SnakemakeApi(OutputSettings(quiet={"all"})) as api:
        workflow = api.workflow(
            # As profiles/slurm has it: no bound on cores, which would hold for jobs on the cluster too.
            resource_settings=ResourceSettings(nodes=64),
            config_settings=ConfigSettings(configfiles=[ROOT / "config" / "paper.yaml"]),
            snakefile=ROOT / "Snakefile",
        )
        workflow.dag().summary()
        jobs = list(workflow._workflow.dag.jobs)
    stages = ("score_", "finetune", "prune", "sparsify", "evaluate_", "ttft_")
    gpu_jobs = [job for job in jobs if job.rule.name.startswith(stages)]
    assert len(gpu_jobs) == 2 + 1 + 14 + 1 + 2 + 4 * 22 + 2
    for job in gpu_jobs:
        assert job.resources["gpu"] == 1, job
        assert job.resources["mem_mb"] >= 64000, job
        assert job.resources["runtime"] >= 480, job
        assert job.threads >= 8, job
    assert not any(job.resources.get("gpu") for job in jobs if job not in gpu_jobs)


def test_the_slurm_profile_bounds_no_cores():
    profile = yaml.safe_load((ROOT / "profiles" / "slurm" / "config.yaml").read_text())
    assert "cores" not in profile
    assert profile["executor"] == "slurm"


@pytest.mark.parametrize(
    "target",
    [
        "samples",
        "conversations",
        "scores",
        "plans",
        "checkpoints",
        "evaluation",
        "ttft",
        "tables",
        "figures",
        "examples",
        "report",
        "table1",
        "table2",
        "table3",
        "table4",
        "table5",
        "table6",
    ],
)
def test_targets_one_can_stop_at_exist(target):
    text = "".join(p.read_text() for p in (ROOT / "workflow" / "rules").glob("*.smk"))
    assert re.search(rf"^rule {target}:", text, re.M)


def test_every_rule_has_its_script_and_every_script_its_rule():
    rules = "".join(p.read_text() for p in (ROOT / "workflow" / "rules").glob("*.smk"))
    used = set(re.findall(r'"\.\./scripts/(\w+\.py)"', rules))
    assert used == {p.name for p in (ROOT / "workflow" / "scripts").glob("*.py")}


def test_rules_hold_no_functions():
    for path in [ROOT / "Snakefile", *(ROOT / "workflow" / "rules").glob("*.smk")]:
        assert not re.search(r"^\s*def ", path.read_text(), re.M), path


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"sede": 1}, "config: unknown key 'sede' at top level; did you mean 'seed'?"),
        ({"experiments": {"ratios": [1]}}, "1 % of the 36 layers of standin_8b drops no layer"),
        (
            {"data": {"source": "local", "path": "absent"}},
            "config: data.path: absent: no such folder",
        ),
    ],
)
def test_a_mistake_in_the_configuration_is_one_line(tmp_path, change, message):
    config = yaml.safe_load((ROOT / "config" / "smoke.yaml").read_text()) | change
    path = tmp_path / "config.yaml"
    path.write_text(yaml.safe_dump(config, sort_keys=False))
    done = snakemake("-n", "--configfile", str(path))
    assert done.returncode != 0
    lines = [line for line in done.stdout.splitlines() if line.startswith("interlace: ")]
    assert len(lines) == 1
    assert message in lines[0]
    assert "Traceback" not in done.stdout


@pytest.mark.skipif(any(Path("/dev").glob("nvidia[0-9]*")), reason="this machine has a GPU")
def test_the_paper_needs_a_gpu():
    done = snakemake("plans", "--cores", "1", "--nolock", "--configfile", "config/paper.yaml")
    assert done.returncode != 0
    assert "this machine has none" in done.stdout


def test_a_hosted_grader_needs_its_key_before_anything_runs(tmp_path):
    config = yaml.safe_load((ROOT / "config" / "smoke.yaml").read_text())
    config["evaluation"]["grader"] = {
        "kind": "openai", "base_url": "https://grader.example/v1", "model": "m", "key_env": "NO_KEY",
    }  # fmt: skip
    path = tmp_path / "config.yaml"
    path.write_text(yaml.safe_dump(config, sort_keys=False))
    done = snakemake("table6", "--cores", "1", "--nolock", "--configfile", str(path))
    assert done.returncode != 0
    assert "environment variable NO_KEY is empty" in done.stdout
    assert "Finished jobid" not in done.stdout
