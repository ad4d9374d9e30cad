"""Which files a result was measured on: the weights by their digest, all by size and time. No torch.

A checkpoint of 8B holds 16 GB: who asks later whether the weights are still the same reads them
only where sizes or times say that they may not be.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from interlace.errors import InputError
from interlace.io import digest, file_digest, folder_digest

WEIGHTS = "*.safetensors"


def file_stamps(folder: str | Path, pattern: str) -> list[list[Any]]:
    """Return [name, bytes, time of the last change in ns] of the files below `folder`, by name.

    `pattern` is a glob. Links are followed: the stamp is that of the file itself.
    """
    files = sorted(path for path in Path(folder).glob(pattern) if path.is_file())
    stats = [(path.relative_to(folder).as_posix(), path.stat()) for path in files]
    return [[name, stat.st_size, stat.st_mtime_ns] for name, stat in stats]


def weights_record(folder: str | Path) -> dict[str, Any]:
    """Return what a score file says of the weights in `folder`: `model_digest`, `model_files`."""
    files = file_stamps(folder, f"**/{WEIGHTS}")
    return {"model_digest": folder_digest(folder, WEIGHTS), "model_files": files}


def check_weights(
    path: str | Path, recorded: Mapping[str, Any], base: str | Path, mend: str
) -> None:
    """Raise `InputError` unless the score file `path` is of the weights of the checkpoint `base`.

    `recorded` holds what `weights_record` gave it. The weights are read only where their files'
    sizes and times differ from those recorded. A `base` without weights (a configuration alone, or
    the path of its `config.json`) is not compared.
    """
    base = Path(base)
    files = file_stamps(base, f"**/{WEIGHTS}") if base.is_dir() else []
    if not files or recorded.get("model_files") == files:
        return
    measured, found = recorded.get("model_digest"), folder_digest(base, WEIGHTS)
    if measured != found:
        raise InputError(
            f"{path}: measured on other weights than {base} holds (digest {measured}, not {found}); "
            f"{mend}"
        )


def configuration_digest(folder: str | Path) -> str:
    """Return a digest of what decides a model's inputs and answers beside its weights.

    That is the files of its config, tokenizer, processor and chat template.
    """
    return digest([folder_digest(folder, f"*.{end}") for end in ("json", "jinja", "txt", "model")])


def checkpoint_digest(checkpoint: Path) -> str:
    """Return a digest of what decides a checkpoint's answers: weights, config, processor.

    Its model card and `interlace.json` do not. InputError if there are no weights.
    """
    checkpoint = Path(checkpoint)
    if not any(checkpoint.glob("*.safetensors")):
        raise InputError(f"{checkpoint}: no *.safetensors here; it is not a checkpoint")
    files = sorted(
        path
        for path in checkpoint.iterdir()
        if path.is_file()
        and path.name not in ("README.md", "interlace.json")
        and path.name[0] != "."
    )
    return digest([[path.name, file_digest(path)] for path in files])
