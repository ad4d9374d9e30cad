"""Bring a base model into a run's folder: from a hub, or by links to a local checkpoint."""

from pathlib import Path

from interlace.errors import InputError
from interlace.io import atomic_path, folder_digest, write_json
from interlace.secrets import one_line

_WANTED = ("*.json", "*.safetensors", "*.txt", "*.jinja", "*.model", "*.md")


def fetch_base_model(source: str, path: str, revision: str | None, out: Path) -> None:
    """Make `out` a checkpoint folder of the model and record where it came from in `source.json`.

    `source` is `hub` (`path` is a Hugging Face id, the resolved commit is recorded; HF_TOKEN,
    HF_HOME, HF_ENDPOINT and HF_HUB_OFFLINE are honoured) or `local` (`path` is a folder whose
    files are linked, a digest of its weights is recorded). Raises InputError if it can't be had.
    """
    if source == "hub":
        origin, resolved = _snapshot(path, revision)
    else:
        origin, resolved = Path(path).resolve(), None
    if not any(origin.glob("*.safetensors")):
        raise InputError(f"{path}: no *.safetensors; save the checkpoint in that format first")
    with atomic_path(out, directory=True) as partial:
        for file in sorted(p for pattern in _WANTED for p in origin.glob(pattern)):
            (partial / file.name).symlink_to(file.resolve())
        resolved = resolved or folder_digest(origin, "*.safetensors")
        record = {"source": source, "path": path, "revision": revision, "resolved": resolved}
        write_json(partial / "source.json", record)


def _snapshot(repo: str, revision: str | None) -> tuple[Path, str]:
    """Return the folder and the resolved commit of a hub model."""
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HFValidationError, HTTPError

    try:
        folder = Path(snapshot_download(repo, revision=revision, allow_patterns=list(_WANTED)))
    # RuntimeError: huggingface_hub's for a file, and those of its Xet library.
    except (HTTPError, HFValidationError, OSError, RuntimeError) as error:
        raise InputError(
            f"models: {repo} (revision {revision or 'main'}) can't be fetched from the hub ({one_line(error)}); "
            "check the id, HF_TOKEN and the network, or give a local folder with source: local"
        ) from None
    return folder, folder.name
