"""Save a model as a plain Hugging Face checkpoint, whole and proven, or not at all."""

import dataclasses
import errno
import os
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from transformers import PreTrainedModel, ProcessorMixin

from interlace.card import model_card
from interlace.decoder.layers import num_layers
from interlace.decoder.load import auto_class, load_model
from interlace.io import atomic_path, folder_digest, write_json, write_text

# Largest difference of a logit, relative to the largest logit, that a reload may show.
TOLERANCE = {torch.float64: 1e-9, torch.float32: 1e-5, torch.bfloat16: 2e-2, torch.float16: 4e-3}


@dataclasses.dataclass
class Probe:
    """A batch and the logits (B, T, V) that a model gives for it."""

    batch: dict[str, torch.Tensor]
    logits: torch.Tensor


def take_probe(model: PreTrainedModel, processor: ProcessorMixin) -> Probe:
    """Return the model's logits for one fixed picture and question.

    Text only where the processor takes no images or has no chat template to place one by.
    """
    tokenizer = getattr(processor, "tokenizer", processor)
    has_images = getattr(processor, "image_processor", None) is not None
    if has_images and (processor.chat_template or tokenizer.chat_template):
        ramp = np.linspace(0, 255, 64 * 96 * 3).astype(np.uint8).reshape(64, 96, 3)
        content = [
            {"type": "image", "image": Image.fromarray(ramp)},
            {"type": "text", "text": "Describe this picture."},
        ]
        batch = processor.apply_chat_template(
            [{"role": "user", "content": content}],
            add_generation_prompt=True,
            tokenize=True,
            return_dict=True,
            return_tensors="pt",
        )
    else:
        batch = tokenizer("Describe this picture.", return_tensors="pt")
    batch = dict(batch)
    return Probe(batch, _logits(model, batch))


def save_checkpoint(
    model: PreTrainedModel,
    processor: ProcessorMixin,
    out: str | Path,
    info: dict[str, Any],
    *,
    state_dict: Mapping[str, torch.Tensor] | None = None,
    files: Mapping[str, str] | None = None,
    probe: Probe | None = None,
    copy_files: Mapping[str, Path] | None = None,
    device: torch.device | None = None,
) -> None:
    """Write safetensors, config, processor, model card and interlace.json to the folder `out`.

    `info` is the body of interlace.json; `loads_with` (the stock class), `num_layers` and `digest`
    (of the weights) are added. `state_dict` holds the weights where `model` itself does not
    (partitioned by ZeRO-3), and `probe` then must hold its logits. `files` are further texts,
    `copy_files` copies of files, by name in the checkpoint. The folder is reloaded and compared
    with the probe before it gets its name, on `device` (None: the model's); RuntimeError if it
    differs.
    """
    out = Path(out)
    if probe is None:
        if state_dict is not None:
            raise ValueError("a state_dict needs the probe of the model it came from")
        probe = take_probe(model, processor)
    with atomic_path(out, directory=True) as partial:
        model.save_pretrained(partial, state_dict=state_dict)
        processor.save_pretrained(partial)
        for file in partial.glob("*.safetensors"):
            file.chmod(0o644)  # safetensors writes 0600, which a colleague on a cluster can't read
        verify_checkpoint(partial, probe, dtype=model.dtype, device=device or model.device)
        info = {
            **info,
            "loads_with": auto_class(model.config).__name__,
            "num_layers": num_layers(model.config),
            "digest": folder_digest(partial, "*.safetensors"),
        }
        for name, text in (files or {}).items():
            write_text(partial / name, text)
        for name, source in (copy_files or {}).items():
            (partial / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(source, partial / name)
        write_text(partial / "README.md", model_card(info))
        write_json(partial / "interlace.json", info)
        sync(partial)
    sync(out.parent, files=[])


def verify_checkpoint(
    path: str | Path,
    probe: Probe,
    *,
    dtype: torch.dtype = torch.float32,
    device: str | torch.device | None = None,
) -> float:
    """Reload a checkpoint the stock way; return the largest difference of its logits to `probe`.

    The difference is relative to the largest logit. Raises RuntimeError if it is above TOLERANCE,
    InputError if the reload would initialise a weight or the depth is stale.
    """
    model = load_model(path, dtype=str(dtype).removeprefix("torch."), device=device)
    logits = _logits(model, probe.batch)
    if logits.shape != probe.logits.shape:
        raise RuntimeError(f"{path}: reloads to logits of shape {tuple(logits.shape)}")
    scale = probe.logits.abs().max().clamp(min=1e-6)
    difference = float((logits - probe.logits).abs().max() / scale)
    if not difference <= TOLERANCE[dtype]:  # NaN fails too
        raise RuntimeError(f"{path}: reloads to logits that differ by {difference:.2e} (relative)")
    return difference


def _logits(model: PreTrainedModel, batch: Mapping[str, torch.Tensor]) -> torch.Tensor:
    was_training = model.training
    model.eval()
    with torch.no_grad():
        moved = {key: value.to(model.device) for key, value in batch.items()}
        logits = model(**moved, use_cache=False).logits
    model.train(was_training)
    return logits.float().cpu() if logits.dtype != torch.float64 else logits.cpu()


def sync(folder: Path, files: Sequence[str] | None = None) -> None:
    """Wait until a folder's list of names, and its files (None: all below it), are on the disk.

    A rename can reach the disk before the bytes of the files do. Disks that cannot sync a folder
    keep the order of its names themselves, or not at all.
    """
    below = folder.rglob("*") if files is None else (folder / name for name in files)
    for path in [*below, folder]:
        descriptor = os.open(path, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        except OSError as error:
            if not path.is_dir() or error.errno not in (errno.EINVAL, errno.ENOTSUP):
                raise
        finally:
            os.close(descriptor)
