"""GPUs shared out among the jobs of a workstation."""

import os
import subprocess
import sys
import threading
import time

import pytest

from interlace import gpus
from interlace.gpus import claimed_gpus, visible_gpus

NAMES = "0,2,GPU-5f2a,MIG-1/3/0"


@pytest.fixture(autouse=True)
def machine(tmp_path, monkeypatch):
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", NAMES)
    monkeypatch.delenv("SLURM_JOB_ID", raising=False)
    monkeypatch.setattr(gpus, "WAIT_S", 0.01)


def test_jobs_get_gpus_of_their_own():
    with claimed_gpus(1) as first:
        assert os.environ["CUDA_VISIBLE_DEVICES"] == first[0]
        os.environ["CUDA_VISIBLE_DEVICES"] = NAMES  # what another job would see
        with claimed_gpus(2) as second:
            assert visible_gpus() == second
            assert len(second) == 2
            assert not set(first) & set(second)
    assert os.environ["CUDA_VISIBLE_DEVICES"] == NAMES


def test_a_job_waits_until_enough_are_free_and_holds_none_meanwhile(capsys):
    seen = []

    def other():
        with claimed_gpus(4) as found:
            seen.append(found)

    with claimed_gpus(3):
        os.environ["CUDA_VISIBLE_DEVICES"] = NAMES
        waiting = threading.Thread(target=other)
        waiting.start()
        while "waiting for 4 of the GPUs" not in capsys.readouterr().out:
            time.sleep(0.01)
        with claimed_gpus(1):  # the one that is left
            assert seen == []
    waiting.join(10)
    assert seen == [NAMES.split(",")]


def test_a_job_that_dies_lets_go(tmp_path):
    code = (
        "import os, signal, tempfile; from interlace.gpus import claimed_gpus\n"
        f"tempfile.tempdir = {str(tmp_path)!r}\n"
        "with claimed_gpus(4): os.kill(os.getpid(), signal.SIGKILL)"
    )
    assert subprocess.run([sys.executable, "-c", code]).returncode == -9
    with claimed_gpus(4) as found:
        assert len(found) == 4


def test_fewer_gpus_than_asked_for_are_all_taken():
    with claimed_gpus(9) as found:
        assert found == NAMES.split(",")


def test_jobs_within_one_allocation_get_gpus_of_their_own(monkeypatch):
    monkeypatch.setenv("SLURM_JOB_ID", "7")
    with claimed_gpus(1) as first:
        os.environ["CUDA_VISIBLE_DEVICES"] = NAMES
        with claimed_gpus(1) as second:
            assert len({*first, *second}) == 2


def test_gpus_are_counted_as_cuda_does(monkeypatch, tmp_path):
    for name in ("nvidia3", "nvidiactl", "nvidia-uvm"):
        (tmp_path / name).touch()
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES")
    monkeypatch.setattr(gpus, "DEVICES", tmp_path)
    assert visible_gpus() == ["0"]


@pytest.mark.parametrize("case", ["none wanted", "slurm", "no gpu"])
def test_nothing_changes_where_there_is_nothing_to_share(case, monkeypatch, tmp_path):
    if case == "slurm":
        monkeypatch.setenv("SLURM_JOB_ID", "7")
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0,1")
    if case == "no gpu":
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    before = os.environ["CUDA_VISIBLE_DEVICES"]
    with claimed_gpus(0 if case == "none wanted" else 2):
        assert os.environ["CUDA_VISIBLE_DEVICES"] == before
    assert list(tmp_path.iterdir()) == []
