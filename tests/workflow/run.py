"""Run the workflow as a person would: the snakemake of this environment, in a process of its own."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
BIN = Path(sys.executable).parent


def snakemake(*arguments: str, env: dict[str, str] | None = None, cwd: Path = ROOT, **options):
    """Run snakemake with `arguments`; return the finished process with its output as text."""
    env = dict(os.environ if env is None else env)
    env["PATH"] = f"{BIN}:{env['PATH']}"
    return subprocess.run(
        [str(BIN / "snakemake"), *arguments],
        cwd=cwd, env=env, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
        stdin=subprocess.DEVNULL, check=False, **options,
    )  # fmt: skip


def checkout(folder: Path) -> Path:
    """Make `folder` a working copy of the tracked and untracked files, so that runs don't meet."""
    listed = subprocess.run(
        ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"],
        cwd=ROOT, capture_output=True, text=True, check=True,
    ).stdout  # fmt: skip
    for name in filter(None, listed.split("\0")):
        source, target = ROOT / name, folder / name
        if source.is_file():
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(source, target)  # with its time, so that make installs nothing
    (folder / ".venv").symlink_to(ROOT / ".venv")
    return folder
