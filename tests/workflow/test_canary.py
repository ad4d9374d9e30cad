"""A grader's key through a whole run of the workflow: the grader gets it, and nothing else does."""

import os
import secrets
from pathlib import Path

import pytest
import yaml

from interlace.demo.grader import grade
from tests.faulty_grader import fail, faulty_grader, fitting, say
from tests.workflow.run import ROOT, checkout, snakemake

pytestmark = pytest.mark.slow

CANARY = f"sk-canary-{secrets.token_hex(12)}"  # in no file, not even this one
NAME = "CANARY_GRADER_KEY"
RUN = "canary"
NAMES = ("AI2D", "MIABench")


def told(folder: Path, base_url: str) -> Path:
    """Write a config with the smoke run's demo stand-ins and a grader at `base_url`."""
    config = yaml.safe_load((ROOT / "config" / "smoke.yaml").read_text())
    config["run"] = RUN
    config["evaluation"] |= {
        "benchmarks": list(NAMES),
        "grader": {
            "kind": "openai",
            "base_url": base_url,
            "model": "judge",
            "key_env": NAME,
            "extract": True,
            "retries": 1,
        },
    }
    path = folder / "config" / "canary.yaml"
    path.write_text(yaml.safe_dump(config))
    return path


def holding(folder: Path) -> list[str]:
    """Return the files below `folder` that hold the canary, in their names too."""
    found = []
    for root, folders, files in os.walk(folder):
        folders[:] = [name for name in folders if not Path(root, name).is_symlink()]
        for path in (Path(root, name) for name in files):
            if CANARY in str(path) or (path.is_file() and CANARY.encode() in path.read_bytes()):
                found.append(str(path.relative_to(folder)))
    return found


def test_no_file_and_no_output_holds_the_graders_key(tmp_path):
    folder = checkout(tmp_path / "work")
    target = f"results/{RUN}/standin_8b/evaluation/dense/limited"
    wanted = [f"{target}/{name}.json" for name in NAMES]
    env = os.environ | {NAME: CANARY, "TMPDIR": str(tmp_path / "tmp")}
    (tmp_path / "tmp").mkdir()
    cores = ("--cores", "2", "--show-failed-logs")

    def act(call, prompt):
        if call == 1:  # a server that says the key back
            return fail(500, f"no capacity for {CANARY}")
        graded = "You need to grade if the response" in prompt
        return say(f"{grade(prompt) if graded else fitting(prompt)} {CANARY if graded else ''}")

    with faulty_grader(lambda call, prompt: fail(401, f"unknown key {CANARY}")) as server:
        config = told(folder, server.base_url)
        arguments = ("--configfile", str(config.relative_to(folder)))
        failed = snakemake(*wanted, *cores, *arguments, cwd=folder, env=env)
        assert failed.returncode != 0
        assert "unknown key [key]" in failed.stdout
        server.act = act
        done = snakemake(*wanted, *cores, *arguments, cwd=folder, env=env)
        assert done.returncode == 0, done.stdout[-6000:].replace(CANARY, "(the canary)")
        assert len(server.requests) >= 8
        assert server.keys == {f"Bearer {CANARY}"}
    for name in wanted:
        assert '"kind": "openai"' in (folder / name).read_text()
    # What was looked through is what such a run leaves.
    assert list((folder / f"results/{RUN}").rglob("*.log"))
    assert list((folder / ".snakemake" / "log").iterdir())
    assert list((folder / ".snakemake" / "metadata").iterdir())
    assert list((folder / target / "work").rglob("replies.jsonl"))
    assert not holding(tmp_path)
    assert CANARY not in failed.stdout + done.stdout
    (folder / ".snakemake" / "planted").write_text(f"key: {CANARY}\n")
    assert holding(tmp_path) == ["work/.snakemake/planted"]  # it would have been found
