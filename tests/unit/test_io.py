"""Files are whole or absent; digests tell content, not layout."""

import errno
import os
import signal
import subprocess
import sys

import pytest

from interlace.errors import InputError
from interlace.io import (
    atomic_path,
    claimed,
    code_digest,
    digest,
    disk_full_told,
    folder_digest,
    read_json,
    write_json,
)

HOLD = """
import sys, time
from interlace.io import claimed
with claimed(sys.argv[1]):
    print("held", flush=True)
    time.sleep(60)
"""
WRITE = """
import sys
from interlace.io import atomic_path
with atomic_path(sys.argv[1]) as partial:
    partial.write_text('{"by": "them"}')
    print("begun", flush=True)
    sys.stdin.read()
"""


def test_a_failed_write_leaves_the_old_file(tmp_path):
    target = tmp_path / "a.json"
    write_json(target, {"x": 1})
    with pytest.raises(RuntimeError), atomic_path(target) as partial:
        partial.write_text("{")
        raise RuntimeError
    assert read_json(target) == {"x": 1}


def test_a_failed_folder_is_not_there(tmp_path):
    target = tmp_path / "folder"
    with pytest.raises(RuntimeError), atomic_path(target, directory=True) as partial:
        (partial / "half").write_text("x")
        raise RuntimeError
    assert not target.exists()
    with atomic_path(target, directory=True) as partial:
        assert not (partial / "half").exists()
        (partial / "whole").write_text("x")
    assert [p.name for p in target.iterdir()] == ["whole"]


def test_writers_of_one_file_do_not_meet_and_what_the_dead_left_goes(tmp_path):
    target = tmp_path / "[a].json"
    with subprocess.Popen(
        [sys.executable, "-c", WRITE, str(target)],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
    ) as other:  # fmt: skip
        assert other.stdout.readline() == "begun\n"
        write_json(target, {"by": "us"})
        assert len(list(tmp_path.glob("*.partial"))) == 1  # of one that is at work
        other.communicate("go on")
        assert other.returncode == 0
    assert read_json(target) == {"by": "them"}
    with subprocess.Popen(
        [sys.executable, "-c", WRITE, str(target)],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
    ) as other:  # fmt: skip
        assert other.stdout.readline() == "begun\n"
        other.kill()
    write_json(target, {"by": "us"})
    assert [path.name for path in tmp_path.iterdir()] == [target.name]


def test_nan_is_refused(tmp_path):
    with pytest.raises(ValueError):
        write_json(tmp_path / "a.json", {"x": float("nan")})


def test_a_torn_json_is_named(tmp_path):
    torn = tmp_path / "torn.json"
    torn.write_text('{"x": ')
    with pytest.raises(InputError, match=r"torn.json: not valid JSON"):
        read_json(torn)
    with pytest.raises(InputError, match="no such file"):
        read_json(tmp_path / "absent.json")


def test_digests(tmp_path):
    assert digest({"a": 1, "b": 2}) == digest({"b": 2, "a": 1})
    assert digest({"a": 1}) != digest({"a": 2})
    (tmp_path / "x.py").write_text("a = 1\n")
    before, all_before = code_digest(tmp_path), folder_digest(tmp_path)
    (tmp_path / "x.py").write_text("# a comment\na  =  1\n")
    assert code_digest(tmp_path) == before
    assert folder_digest(tmp_path) != all_before
    (tmp_path / "x.py").write_text("a = 2\n")
    assert code_digest(tmp_path) != before


def test_a_claim_is_named_and_ends_with_its_process_however_that_ends(tmp_path):
    target, lock = tmp_path / "spool", tmp_path / ".spool.lock"
    with subprocess.Popen(
        [sys.executable, "-c", HOLD, str(target)], stdout=subprocess.PIPE, text=True
    ) as other:
        assert other.stdout.readline() == "held\n"
        for refused in (claimed(target), atomic_path(target, directory=True)):
            with pytest.raises(InputError) as caught, refused:
                raise AssertionError("two hold it")
            line = str(caught.value)
            assert "\n" not in line
            for part in (str(target), f"process {other.pid} on", str(lock), "run again"):
                assert part in line
        other.send_signal(signal.SIGKILL)
        other.wait()
    assert lock.exists()
    with claimed(target):
        assert str(os.getpid()) in lock.read_text()
    assert list(tmp_path.iterdir()) == []


def test_a_claim_whose_lock_was_removed_meanwhile_is_none(tmp_path, monkeypatch):
    target, lock = tmp_path / "spool", tmp_path / ".spool.lock"
    flock, tries = __import__("fcntl").flock, []

    def late(handle, how):
        tries.append(how)
        if len(tries) == 1:
            lock.unlink()
        flock(handle, how)

    monkeypatch.setattr("interlace.io.fcntl.flock", late)
    with claimed(target), pytest.raises(InputError, match="is at work on it"), claimed(target):
        raise AssertionError("two hold it")
    assert len(tries) == 3


def test_a_disk_without_locks_is_told_and_written(tmp_path, monkeypatch, capsys):
    def none(handle, how):
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr("interlace.io.fcntl.flock", none)
    with atomic_path(tmp_path / "a", directory=True) as partial:
        (partial / "x").write_text("x")
    assert (tmp_path / "a" / "x").exists()
    assert "no locks" in capsys.readouterr().out


def test_only_a_full_disk_is_told_as_one():
    for code in (errno.ENOSPC, errno.EDQUOT):
        told = pytest.raises(InputError, match=r"^out: the disk is full \(.*\); free some$")
        with told, disk_full_told("out", "free some"):
            raise OSError(code, os.strerror(code))
    with pytest.raises(OSError, match="Input/output") as caught, disk_full_told("out", "free some"):
        raise OSError(errno.EIO, os.strerror(errno.EIO))
    assert not isinstance(caught.value, InputError)
