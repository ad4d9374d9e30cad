"""The scripts that make something of the samples: pages to look at and Qwen's JSON."""

import json

from tests.scripts.test_scripts import run_script
from tests.tiny import make_tiny_samples


def test_contact_sheet(tmp_path):
    make_tiny_samples(tmp_path / "samples")
    done, log = run_script(
        "contact_sheet", tmp_path / "a.log",
        input=[str(tmp_path / "samples")],
        output=[str(tmp_path / "figures" / "samples")],
        params={"seed": 0, "standin": ["stand-in data"]},
    )  # fmt: skip
    assert done.returncode == 0, log
    assert (tmp_path / "figures" / "samples" / "page01.png").stat().st_size > 1000


def test_export_conversations(tmp_path):
    make_tiny_samples(tmp_path / "samples", rows=3)
    done, log = run_script(
        "export_conversations", tmp_path / "a.log",
        input=[str(tmp_path / "samples")],
        output=[str(tmp_path / "conversations")],
    )  # fmt: skip
    assert done.returncode == 0, log
    items = json.loads((tmp_path / "conversations" / "conversations.json").read_text())
    assert f"{len(items)} samples" in log
    done, _ = run_script(
        "export_conversations", tmp_path / "b.log",
        input=[str(tmp_path / "absent")], output=[str(tmp_path / "again")],
    )  # fmt: skip
    assert done.returncode == 1
    assert done.stderr.startswith("interlace: ")
    assert done.stderr.count("\n") == 1
