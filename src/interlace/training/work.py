"""The folder beside a checkpoint to be, in which a run keeps what it goes on from.

`.<out>.trainer-<digest>/<sharding>[-<digest of the DeepSpeed file>]/checkpoint-<step>`: the first
digest is of all that the weights depend on. What DeepSpeed wrote can be read by none but DeepSpeed.
"""

import contextlib
import errno
import glob
import pickle
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from safetensors import SafetensorError

from interlace.data.stamp import samples_digest
from interlace.decoder.checkpoint import sync
from interlace.errors import InputError
from interlace.io import digest, disk_full_told, folder_digest, read_json, remove, write_json
from interlace.memory import is_out_of_memory
from interlace.training.recipe import of_the_weights

_SIZES = "sizes.json"  # of a checkpoint's files, by name


def work_folder(job: dict[str, Any], plan: dict[str, Any], world_size: int, ids: list[str]) -> Path:
    """Return the folder of a job. Only the same run may be gone on with: other samples (`ids`),
    other layers or another base, other settings (`of_the_weights`) or ranks have a folder of
    another name.

    Levers and what bounds failures or memory are no part of it: who follows the advice of an error
    goes on where the run stopped.
    """
    settings = of_the_weights(job["settings"]) | {"world_size": world_size}
    base = [folder_digest(job["base"], pattern) for pattern in ("*.json", "*.jinja", "*.txt")]
    samples = samples_digest(job["samples"], ids)
    layers = {key: plan[key] for key in ("num_layers", "drop", "tune", "reading")}
    run = digest([settings, job["seed"], layers, job["model_revision"], base, samples])
    out = Path(job["out"])
    return out.with_name(f".{out.name}.trainer-{run}")


def work_folders(out: Path) -> list[Path]:
    """Return all such folders, and the notes beside them, of one checkpoint."""
    return sorted(out.parent.glob(f".{glob.escape(out.name)}.trainer-*"))


def engine_folder(work: Path, sharding: str, deepspeed: str | None) -> Path:
    """Return the folder of a way to share out memory; `deepspeed` is its DeepSpeed file or None."""
    return work / (sharding if deepspeed is None else f"{sharding}-{digest(read_json(deepspeed))}")


def kept_sharding(work: Path) -> str | None:
    """Return the sharding of the checkpoint in `work` that has come furthest; None without one."""
    checkpoints = _checkpoints(work, "*/checkpoint-*")
    return checkpoints[-1].parent.name.partition("-")[0] if checkpoints else None


def last_checkpoint(folder: Path) -> Path | None:
    """Return the newest checkpoint of an engine's folder to go on from, or None."""
    return (_checkpoints(folder, "checkpoint-*") or [None])[-1]


def begins_anew(engine: Path, out: Path) -> list[str]:
    """Return a line for each checkpoint that there is, but not to go on from in `engine`."""
    lines = []
    if last_checkpoint(engine) is not None:
        return lines
    for path in work_folders(out):
        found = _checkpoints(path, "*/checkpoint-*")
        if not found:
            continue
        way, now = (folder.name.partition("-")[0] for folder in (found[-1].parent, engine))
        why = f"finetune.levers.sharding was {way} and is {now}"
        if way == now:
            why = "the DeepSpeed file has changed"
        if path != engine.parent:
            why = "it is of other settings, samples, plan, base or processes"
        lines.append(f"begins anew, {found[-1]} is not gone on from: {why}")
    return lines


def finish(partial: Path, final: Path) -> None:
    """Give a checkpoint, all of whose files are on the disk, its name; older ones go after that."""
    write_json(partial / _SIZES, _sizes(partial))
    sync(partial, files=[_SIZES])
    older = list(final.parent.glob("checkpoint-*"))
    partial.replace(final)
    sync(final.parent, files=[])
    for path in older:
        remove(path)


def check_whole(checkpoint: Path) -> None:
    """Raise InputError where a file of a checkpoint is missing or has not the size it was given."""
    with readable(checkpoint):
        wanted = read_json(checkpoint / _SIZES)
        read_json(checkpoint / "trainer_state.json")
        found = _sizes(checkpoint)
        wrong = [name for name, size in wanted.items() if found.get(name) != size]
        if wrong:
            raise EOFError(f"{wrong[0]}: {found.get(wrong[0], 0)} of {wanted[wrong[0]]} bytes")


@contextlib.contextmanager
def readable(checkpoint: str | Path) -> Iterator[None]:
    """Turn what a torn file raises in the block into an InputError that names what to delete."""
    try:
        yield
    except (
        RuntimeError, EOFError, OSError, KeyError, ValueError, pickle.UnpicklingError,
        SafetensorError,
    ) as error:  # fmt: skip
        # Of the system's errors, torch's reader raises EINVAL for bytes that are no archive.
        others = isinstance(error, OSError) and error.errno not in (errno.ENOENT, errno.EINVAL)
        if others or is_out_of_memory(error):
            raise
        said = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise InputError(
            f"{checkpoint}: cannot be gone on from, it is damaged ({said}); delete this folder, and"
            " the training begins anew"
        ) from error


def size_of(checkpoint: Path | None) -> int:
    """Return the bytes of a checkpoint's files; 0 for None."""
    return 0 if checkpoint is None else sum(_sizes(checkpoint).values())


@contextlib.contextmanager
def full_disk_told(path: Path, needed: int = 0) -> Iterator[None]:
    """Turn a disk that gets full in the block, or has not the `needed` bytes, into an InputError.

    Training goes on from its last checkpoint then.
    """
    way_out = "free some and run again, training goes on from its last checkpoint"
    free = shutil.disk_usage(path.parent).free
    if needed > free:
        raise InputError(f"{path}: {needed / 1e9:.2g} GB needed, {free / 1e9:.2g} free; {way_out}")
    with disk_full_told(str(path), way_out):
        try:
            yield
        except (RuntimeError, SafetensorError) as error:
            # The writers of torch and safetensors have errors of their own for a full disk.
            said = str(error).splitlines()[0]
            full = f"os error {errno.ENOSPC}" in said or f"os error {errno.EDQUOT}" in said
            if full or (
                "PytorchStreamWriter" in said and shutil.disk_usage(path.parent).free < 2**20
            ):
                raise InputError(f"{path}: the disk is full ({said}); {way_out}") from error
            raise


def _checkpoints(folder: Path, pattern: str) -> list[Path]:
    """Return the whole checkpoints below a folder, the one that has come furthest last."""
    return sorted(folder.glob(pattern), key=lambda path: int(path.name.split("-")[1]))


def _sizes(folder: Path) -> dict[str, int]:
    files = (path for path in sorted(folder.rglob("*")) if path.is_file() and path.name != _SIZES)
    return {path.relative_to(folder).as_posix(): path.stat().st_size for path in files}
