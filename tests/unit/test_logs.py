"""A script's log holds what happened, also when it fails."""

import subprocess
import sys


def run(tmp_path, body):
    log = tmp_path / "logs" / "x.log"
    code = f"""
from interlace.logs import script_log
from interlace.errors import InputError
with script_log({str(log)!r}):
    import os, subprocess
{body}
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    return done, log.read_text()


def test_output_of_the_process_and_of_its_children(tmp_path):
    done, log = run(tmp_path, "    print('mine'); subprocess.run(['echo', 'theirs'])")
    assert done.returncode == 0
    assert log.split() == ["mine", "theirs"]
    assert done.stdout == ""


def test_an_input_error_is_one_line_in_both_places(tmp_path):
    done, log = run(tmp_path, "    raise InputError('a.tsv: row 3: no image')")
    assert done.returncode == 1
    assert done.stderr == "interlace: a.tsv: row 3: no image\n"
    assert log == "error: a.tsv: row 3: no image\n"


def test_any_other_error_leaves_its_traceback(tmp_path):
    done, log = run(tmp_path, "    1 / 0")
    assert done.returncode == 1
    assert "ZeroDivisionError" in log
    assert "Traceback" in log
    assert "ZeroDivisionError" in done.stderr
