"""Evaluation killed at any moment, torn caches, and two jobs at once: the same results in the end."""

import json
import os
import signal
import subprocess
import sys
import time

import pytest

from interlace.evaluation.prepare import prepare_benchmarks
from interlace.io import read_json
from tests.tiny import make_tiny_checkpoint
from tests.tiny_benchmarks import make_tiny_benchmarks, stub_grader

NAMES = ("AI2D", "MMBench", "MIABench")
JOB = """
import json, sys
from pathlib import Path
from interlace.evaluation.run import evaluate

root, out, settings = Path(sys.argv[1]), Path(sys.argv[2]), json.loads(sys.argv[3])
evaluate(root / "model", sys.argv[4:], root / "lmu", out, settings,
         model="tiny", variant="dense", mode="limited", seed=0)
"""


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    root = tmp_path_factory.mktemp("killed")
    datasets = ("AI2D_TEST", "MMBench_DEV_EN_V11", "MIA-Bench")
    make_tiny_benchmarks(root / "tsv", questions=3, datasets=datasets)
    prepare_benchmarks(datasets, root / "lmu", str(root / "tsv"))
    make_tiny_checkpoint(root / "model", layers=4)
    return root


@pytest.fixture
def grader():
    def answer(call):
        time.sleep(server.delay)
        return "score of component 1: 3/6, score of component 2: 2/4, total score: 5/10. It is so."

    with stub_grader(answer) as server:
        server.delay = 0
        yield server


@pytest.fixture(scope="module")
def whole(root, tmp_path_factory):
    """The results of a run that nothing disturbed."""
    out = tmp_path_factory.mktemp("whole")
    with stub_grader() as server:
        end(start(root, out, server))
    return out


def start(root, out, server):
    grader = {"kind": "openai", "base_url": server.base_url, "model": "rules", "parallel": 1}
    settings = {"modes": {"limited": 6}, "batch_size": 2, "grader": grader}
    return subprocess.Popen(
        [sys.executable, "-c", JOB, str(root), str(out), json.dumps(settings), *NAMES],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
    )


def end(job):
    output = job.communicate(timeout=240)[0]
    assert job.returncode == 0, output
    return output


def kill_when(job, happened):
    while not happened():
        assert job.poll() is None, job.stdout.read()
        time.sleep(0.002)
    job.send_signal(signal.SIGKILL)
    job.communicate()


def results(out):
    found = {name: read_json(out / f"{name}.json") for name in NAMES}
    for body in found.values():
        del body["seconds"]
    return found


def test_killed_while_generating_scoring_and_grading(root, whole, tmp_path, grader):
    out = tmp_path / "out"
    stores = "work/AI2D-*/predictions-*.jsonl"
    kill_when(start(root, out, grader), lambda: any(f.stat().st_size for f in out.glob(stores)))
    assert not list(out.glob("*.json"))
    kill_when(start(root, out, grader), lambda: [*out.glob("work/MMBench-*/scores/*")])
    assert not (out / "MMBench.json").exists()
    store = read_store(out, "AI2D")
    grader.calls, grader.delay = 0, 0.3
    kill_when(start(root, out, grader), lambda: grader.calls == 2)
    assert not (out / "MIABench.json").exists()
    # What it was writing when it died: VLMEvalKit's own caches are not written whole either.
    for cache in [*out.glob("work/*/*/*.pkl")]:
        cache.write_bytes(cache.read_bytes()[:-3])
    grader.delay = 0
    end(start(root, out, grader))
    assert results(out) == results(whole)
    assert read_store(out, "AI2D") == store  # finished benchmarks were not generated again
    for name in NAMES:
        ours, theirs = ((f / f"{name}.parquet").read_bytes() for f in (out, whole))
        assert ours == theirs


def read_store(out, name):
    return {file.name: file.read_bytes() for file in out.glob(f"work/{name}-*/predictions-*.jsonl")}


def test_two_jobs_at_once(root, whole, tmp_path, grader):
    jobs = [start(root, tmp_path / "same", grader) for _ in range(2)]
    outputs = [job.communicate(timeout=240)[0] for job in jobs]
    assert 0 in [job.returncode for job in jobs]
    for job, output in zip(jobs, outputs, strict=True):
        assert job.returncode == 0 or "is at work on it" in output
    assert results(tmp_path / "same") == results(whole)
