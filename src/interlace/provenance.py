"""Where a result comes from: what every JSON of a run carries."""

import functools
import importlib.metadata
import subprocess
from pathlib import Path
from typing import Any

SCHEMA_VERSION = 1
_PACKAGES = {"torch": "torch", "transformers": "transformers", "vlmeval": "ms-vlmeval"}


def stamp(
    kind: str,
    *,
    config_digest: str,
    seed: int | None,
    num_samples: int | None,
    model_revision: str | None = None,
) -> dict[str, Any]:
    """Return the provenance block of a result.

    `kind` names the file's schema (`evaluation`, `plan`, ...). `config_digest` is the digest of the
    config sections that the stage reads; `model_revision` a hub commit or a digest of the weights.
    """
    return {
        "schema": f"interlace/{kind}/{SCHEMA_VERSION}",
        "git_commit": git_commit(),
        "config_digest": config_digest,
        "model_revision": model_revision,
        "seed": seed,
        "num_samples": num_samples,
        "versions": versions(),
    }


@functools.cache
def versions() -> dict[str, str | None]:
    """Return the installed versions of torch, transformers and vlmeval, without importing them."""
    found: dict[str, str | None] = {}
    for name, distribution in _PACKAGES.items():
        try:
            found[name] = importlib.metadata.version(distribution)
        except importlib.metadata.PackageNotFoundError:
            found[name] = None
    return found


@functools.cache
def git_commit() -> str | None:
    """Return the commit of the checkout this package lies in (`+dirty` if changed), or None."""
    root = Path(__file__).resolve().parents[2]

    def git(*arguments: str) -> str:
        return subprocess.run(
            ["git", "-C", str(root), *arguments], capture_output=True, text=True, check=True
        ).stdout.strip()

    try:
        commit = git("rev-parse", "--short=12", "HEAD")
        return commit + ("+dirty" if git("status", "--porcelain", "--untracked-files=no") else "")
    except (OSError, subprocess.CalledProcessError):
        return None
