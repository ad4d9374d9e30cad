"""Evaluation killed where it hurts, torn caches, and two jobs at once: the same results in the end.

Jobs are forks of this process, which has imported what takes seconds to import.
"""

import os
import signal
import sys
import threading
import time
import traceback

import pytest

from interlace.evaluation import engine, kit
from interlace.evaluation.predictions import PredictionStore
from interlace.evaluation.prepare import prepare_benchmarks
from interlace.evaluation.run import evaluate
from interlace.io import read_json
from tests.tiny import make_tiny_checkpoint
from tests.tiny_benchmarks import GRADE, make_tiny_benchmarks, stub_grader

NAMES = ("AI2D", "MMBench", "MIABench")


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
        assert server.goes_on.wait(100)
        return GRADE

    with stub_grader(answer) as server:
        server.goes_on = threading.Event()
        server.goes_on.set()
        yield server
        server.goes_on.set()


@pytest.fixture(scope="module")
def whole(root, tmp_path_factory):
    """The results of a run that nothing disturbed."""
    out = tmp_path_factory.mktemp("whole")
    with stub_grader() as server:
        run(root, out, server)
    return out


def run(root, out, server):
    grader = {"kind": "openai", "base_url": server.base_url, "model": "rules", "parallel": 1}
    evaluate(
        root / "model",
        NAMES,
        root / "lmu",
        out,
        {"modes": {"limited": 6}, "batch_size": 2, "grader": grader},
        model="tiny",
        variant="dense",
        mode="limited",
        seed=0,
    )


class Job:
    """A fork that evaluates, and dies by SIGKILL once `dies_after` (module, name) has returned."""

    def __init__(self, root, out, server, dies_after=None):
        self.log, self.status = out.with_name(f"{out.name}-{time.monotonic_ns()}.log"), None
        self.pid = os.fork()
        if self.pid:
            return
        status = 1
        try:
            sys.stdout = sys.stderr = self.log.open("w", buffering=1)
            for stream in (1, 2):
                os.dup2(sys.stdout.fileno(), stream)
            if dies_after:
                module, name = dies_after
                function = getattr(module, name)
                setattr(module, name, lambda *args, **kwargs: [function(*args, **kwargs), die()])
            engine.FLUSH_S = 0
            run(root, out, server)
            status = 0
        except BaseException:
            traceback.print_exc()
        finally:
            os._exit(status)

    def end(self):
        """Return its exit status, negative if a signal ended it, and its log."""
        status = os.waitstatus_to_exitcode(os.waitpid(self.pid, 0)[1])
        return status, self.log.read_text()

    def is_running(self):
        return os.waitid(os.P_PID, self.pid, os.WEXITED | os.WNOHANG | os.WNOWAIT) is None


def die():
    os.kill(os.getpid(), signal.SIGKILL)


def wait_for(job, happened):
    while not happened():
        assert job.is_running(), job.log.read_text()
        time.sleep(0.002)


def results(out):
    found = {name: read_json(out / f"{name}.json") for name in NAMES}
    for body in found.values():
        del body["seconds"]
    return found


def read_store(out, name):
    return {file.name: file.read_bytes() for file in out.glob(f"work/{name}-*/predictions-*.jsonl")}


def test_killed_while_generating_scoring_and_grading(root, whole, tmp_path, grader):
    kit.load_vlmeval()
    from vlmeval.dataset.utils import multiple_choice

    out = tmp_path / "out"
    assert Job(root, out, grader, (PredictionStore, "add")).end()[0] == -signal.SIGKILL
    assert len(read_store(out, "AI2D")) == 1
    assert not list(out.glob("*.json"))
    scoring = (multiple_choice, "mcq_circular_eval")
    assert Job(root, out, grader, scoring).end()[0] == -signal.SIGKILL
    assert list(out.glob("work/MMBench-*/scores/*"))
    assert not (out / "MMBench.json").exists()
    store = read_store(out, "AI2D")
    assert len(store) == 2  # the first attempt's and the rest
    grader.calls = 0
    grader.goes_on.clear()
    job = Job(root, out, grader)
    wait_for(job, lambda: grader.calls == 1)
    os.kill(job.pid, signal.SIGKILL)
    assert job.end()[0] == -signal.SIGKILL
    grader.goes_on.set()
    assert not (out / "MIABench.json").exists()
    # What it was writing when it died: VLMEvalKit's own caches are not written whole either.
    torn = [*out.glob("work/*/*/*.pkl")]
    assert torn
    for cache in torn:
        cache.write_bytes(cache.read_bytes()[:-3])
    status, log = Job(root, out, grader).end()
    assert status == 0, log
    assert results(out) == results(whole)
    assert read_store(out, "AI2D") == store  # finished benchmarks were not generated again
    for name in NAMES:
        ours, theirs = ((f / f"{name}.parquet").read_bytes() for f in (out, whole))
        assert ours == theirs


def test_two_jobs_at_once(root, whole, tmp_path, grader):
    out = tmp_path / "same"
    grader.goes_on.clear()
    first = Job(root, out, grader)
    wait_for(first, lambda: grader.calls == 1)
    status, log = Job(root, out, grader).end()
    assert status == 1
    assert "MIABench" in log.splitlines()[-1]
    assert f"process {first.pid} on " in log
    assert "is at work on it" in log
    grader.goes_on.set()
    status, log = first.end()
    assert status == 0, log
    assert results(out) == results(whole)
