"""Load a checkpoint from disk, or say in one line why it must not be used."""

import logging
import re
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoModelForImageTextToText,
    AutoProcessor,
    PreTrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    ProcessorMixin,
)
from transformers.models.auto.modeling_auto import MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING
from transformers.utils import logging as transformers_logging

from interlace.decoder.layers import check_family, num_layers
from interlace.errors import InputError

DTYPES: dict[str, torch.dtype | str] = {
    "auto": "auto",
    "float32": torch.float32,
    "bfloat16": torch.bfloat16,
    "float16": torch.float16,
    "float64": torch.float64,
}
_LAYER = re.compile(r"(?:^|\.)layers\.(\d+)\.")
_VISION = re.compile(r"vision|visual")


def default_device(settings: Mapping[str, Any]) -> str:
    """Return the device that `settings` name under `device`; else CUDA where there is one."""
    return settings.get("device") or ("cuda" if torch.cuda.is_available() else "cpu")


def load_model(
    path: str | Path,
    dtype: str = "float32",
    device: str | torch.device | None = None,
    attention: str = "sdpa",
) -> PreTrainedModel:
    """Load a checkpoint folder in evaluation mode; nothing is fetched. dtype `auto` is its own.

    Raises InputError if it is no checkpoint, if its family is unknown, if a weight would be newly
    initialised or has another shape than its config says, or if its weights hold more layers than
    its config states.
    """
    path = _checkpoint_folder(path)
    if dtype not in DTYPES:
        raise InputError(f"dtype {dtype!r}: choose one of {', '.join(DTYPES)}")
    try:
        config = AutoConfig.from_pretrained(path, local_files_only=True)
    except (OSError, ValueError, KeyError) as error:
        raise InputError(f"{path}/config.json: {_first_line(error)}") from None
    check_family(config, path)
    auto = auto_class(config)
    if not sys.stderr.isatty():
        transformers_logging.disable_progress_bar()
    verbosity = transformers_logging.get_verbosity()
    transformers_logging.set_verbosity_error()  # what matters of its load report is checked below
    try:
        model, report = auto.from_pretrained(
            path,
            dtype=DTYPES[dtype],
            attn_implementation=attention,
            local_files_only=True,
            ignore_mismatched_sizes=True,  # refused below, by name
            output_loading_info=True,
        )
    except (OSError, SafetensorError, RuntimeError) as error:
        raise InputError(f"{path}: its weights cannot be read: {_first_line(error)}") from None
    except (ImportError, ValueError) as error:
        raise InputError(
            f"{path}: cannot be loaded with attention {attention!r}: {_first_line(error)}"
        ) from None
    finally:
        transformers_logging.set_verbosity(verbosity)
    _refuse_incomplete(path, report)
    model.eval()
    return model.to(device) if device is not None else model


def auto_class(config: PreTrainedConfig) -> type:
    """Return the stock class that loads a model: one for vision-language models, one for text."""
    is_vision_language = type(config) in MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING
    return AutoModelForImageTextToText if is_vision_language else AutoModelForCausalLM


def load_processor(
    path: str | Path, min_pixels: int | None = None, max_pixels: int | None = None
) -> ProcessorMixin | PreTrainedTokenizerBase:
    """Load a checkpoint's processor; `min_pixels` and `max_pixels` bound the pixels of an image.

    Images outside the bounds are scaled, keeping their aspect. None keeps the checkpoint's own.
    Raises InputError if a bound is asked of an image processor that has none (all but Qwen's: they
    scale to a fixed size or cut into tiles). A text-only model has its bare tokenizer as processor,
    and nothing to bound; of a vision-language model that is refused.
    """
    path = _checkpoint_folder(path)
    try:
        processor = AutoProcessor.from_pretrained(path, local_files_only=True)
    except (OSError, ValueError, KeyError, ImportError) as error:
        raise InputError(f"{path}: its processor cannot be read: {_first_line(error)}") from None
    images = getattr(processor, "image_processor", None)
    if images is None or (min_pixels is None and max_pixels is None):
        return processor
    if "max_pixels" not in images.valid_kwargs.__annotations__:
        raise InputError(
            f"{path}: {type(images).__name__} has no bounds on pixels; set min_pixels and max_pixels"
            " to null for this model"
        )
    # Qwen's image processors name the bounds on the pixel count after edges.
    lowest = min_pixels if min_pixels is not None else images.size["shortest_edge"]
    highest = max_pixels if max_pixels is not None else images.size["longest_edge"]
    if lowest > highest:
        raise InputError(f"min_pixels {lowest} is above max_pixels {highest} for {path}")
    images.size = {"shortest_edge": lowest, "longest_edge": highest}
    return processor


def _checkpoint_folder(path: str | Path) -> Path:
    path = Path(path)
    if not (path / "config.json").is_file():
        raise InputError(f"{path}: no checkpoint there (config.json is missing)")
    return path


def _refuse_incomplete(path: Path, report: dict) -> None:
    missing, mismatched = sorted(report["missing_keys"]), sorted(report["mismatched_keys"])
    unexpected = sorted(report["unexpected_keys"])
    depth = num_layers(path)
    if missing:
        stale = " (is num_hidden_layers in its config.json stale?)" if _layers(missing) else ""
        raise InputError(
            f"{path}: {len(missing)} weights would be newly initialised, first {missing[0]}{stale};"
            " save the checkpoint again"
        )
    if mismatched:
        name, found, wanted = mismatched[0]
        raise InputError(
            f"{path}: weight {name} has the shape {tuple(found)}, not {tuple(wanted)} as its "
            "config.json says; save the checkpoint again"
        )
    deeper = [layer for layer in _layers(unexpected) if layer >= depth]
    if deeper:
        raise InputError(
            f"{path}: config.json states {depth} decoder layers, its weights hold {max(deeper) + 1};"
            " the depth is stale, save the checkpoint again"
        )
    if unexpected:
        logging.getLogger(__name__).warning(
            "%s: %d weights are not part of the model and not used, first %s",
            path,
            len(unexpected),
            unexpected[0],
        )


def _layers(keys: list[str]) -> list[int]:
    """Return the decoder's layers among the names of weights; vision towers have layers too."""
    named = (_LAYER.search(key) for key in keys if not _VISION.search(key))
    return [int(match.group(1)) for match in named if match]


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]
