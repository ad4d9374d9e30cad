"""Versions that results carry."""

import os
import subprocess
import sys

CODE = "from interlace.provenance import versions; print(versions()['vlmeval'])"


def version(*places):
    path = os.pathsep.join(map(str, places))
    env = os.environ | {"PYTHONPATH": os.pathsep.join([path, os.environ.get("PYTHONPATH", "")])}
    command = [sys.executable, "-c", CODE]
    return subprocess.run(command, env=env, capture_output=True, text=True, check=True).stdout


def test_a_checkout_of_vlmeval_counts_by_its_code(tmp_path):
    dataset = tmp_path / "vlmeval" / "dataset"
    dataset.mkdir(parents=True)
    (tmp_path / "vlmeval" / "__init__.py").write_text("raise ImportError('imported')")
    (dataset / "prompt.py").write_text("PROMPT = 'a'")
    installed, first = version(), version(tmp_path)
    assert installed.count(".") == 2
    assert first.startswith("checkout ")
    (dataset / "prompt.py").write_text("PROMPT = 'b'  # another")
    assert version(tmp_path) not in (first, installed)
    (dataset / "prompt.py").write_text("PROMPT = 'a'  # a comment")
    assert version(tmp_path) == first
