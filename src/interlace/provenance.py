"""Where a result comes from: what every JSON of a run carries."""

import functools
import importlib.metadata
import importlib.util
import subprocess
from pathlib import Path
from typing import Any

from interlace.io import code_digest

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
    """Return the versions of torch, transformers and vlmeval in use, without importing them.

    A checkout of vlmeval on the module path counts by its code, whatever is installed.
    """
    found: dict[str, str | None] = {}
    for name, distribution in _PACKAGES.items():
        try:
            found[name] = importlib.metadata.version(distribution)
        except importlib.metadata.PackageNotFoundError:
            found[name] = None
    found["vlmeval"] = _vlmeval_checkout() or found["vlmeval"]
    return found


def _vlmeval_checkout() -> str | None:
    """Return a digest of the code that scores depend on, where vlmeval is not the installed one."""
    spec = importlib.util.find_spec("vlmeval")
    if spec is None or spec.origin is None:
        return None
    package = Path(spec.origin).resolve().parent
    try:
        installed = importlib.metadata.distribution(_PACKAGES["vlmeval"]).locate_file("vlmeval")
        if package == Path(str(installed)).resolve():
            return None
    except importlib.metadata.PackageNotFoundError:
        pass
    places = [package / place for place in ("dataset", "smp", "vlm/qwen3_vl", "inference.py")]
    return f"checkout {code_digest(*(place for place in places if place.exists()))}"


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
