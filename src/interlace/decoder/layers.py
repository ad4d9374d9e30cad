"""Where each family of models keeps its decoder layers, and what flows in and out of them."""

from pathlib import Path
from typing import TYPE_CHECKING

from interlace.errors import InputError
from interlace.io import read_json

if TYPE_CHECKING:  # torch is heavy; reading a depth from a config does without it
    import torch
    from transformers import PreTrainedConfig, PreTrainedModel

# The decoders whose layers may be taken out and put to use on their own: the model type of the
# text part of a config. Whatever model is built around one of them (LLaVA, LLaVA-OneVision, InternVL,
# SmolVLM, Idefics3, ...) runs it as a whole and needs no line of its own. A new line needs its
# family in tests/tiny_families.py.
DECODERS = frozenset(
    {
        *("qwen3_vl_text", "qwen3_vl_moe_text", "qwen2_5_vl_text", "qwen2_vl_text"),
        *("gemma3_text", "llama", "mistral", "qwen2", "qwen3"),
    }
)
# Families that add visual features to the hidden states after the first decoder positions.
_DEEPSTACK_FAMILIES = ("qwen3_vl", "qwen3_vl_moe")


def check_family(config: "PreTrainedConfig", source: object = "model") -> None:
    """Raise InputError unless `config` is of a known decoder, or of a model around one.

    `source` names the model in the message.
    """
    try:
        kind = text_config(config).model_type
    except ValueError:  # several text configs, as models that speak have
        kind = "of several"
    if kind not in DECODERS:
        known = ", ".join(sorted(DECODERS))
        raise InputError(
            f"{source}: model type {config.model_type!r} has an unknown decoder ({kind}); known are"
            f" {known} (interlace.decoder.layers.DECODERS)"
        )


def decoder_stack(model: "PreTrainedModel") -> "torch.nn.Module":
    """Return the module that holds the decoder's layers, a ModuleList, as `layers`.

    Raises InputError for a family that `check_family` does not know.
    """
    check_family(model.config)
    stack = model.get_decoder()
    assert len(stack.layers) > 0, type(stack)
    return stack


def decoder_layers(model: "PreTrainedModel") -> "torch.nn.ModuleList":
    """Return the language decoder's layers, first to last; InputError for an unknown family."""
    return decoder_stack(model).layers


def text_config(config: "PreTrainedConfig") -> "PreTrainedConfig":
    """Return the part of `config` that describes the language decoder (itself if text only)."""
    return config.get_text_config(decoder=True)


def num_layers(source: "str | Path | PreTrainedConfig") -> int:
    """Return the number of decoder layers a checkpoint folder, its config.json or a config states.

    Reading a folder needs no torch, and transformers only for a config.json that leaves the depth
    to the family's default. Raises InputError if none is stated.
    """
    if not isinstance(source, str | Path):
        return int(text_config(source).num_hidden_layers)
    path = _config_file(source)
    config = read_json(path)
    depth = config.get("text_config", config).get("num_hidden_layers")
    if depth is None and "text_config" in config:
        depth = num_layers(_whole_config(path))
    if not isinstance(depth, int):
        raise InputError(f"{path}: states no num_hidden_layers; is it a model's config.json?")
    return depth


def num_deepstack(source: "str | Path | PreTrainedConfig") -> int:
    """Return how many of the first decoder positions get visual features added (DeepStack).

    Qwen3-VL (MoE too) adds them after positions 0, 1, ... by position, outside the layer, so that
    dropping one of these layers moves the injection to the layer that takes its place. Other
    families have none.
    """
    if isinstance(source, str | Path):
        path = _config_file(source)
        config = read_json(path)
        if config.get("model_type") not in _DEEPSTACK_FAMILIES:
            return 0
        indexes = config.get("vision_config", {}).get("deepstack_visual_indexes")
        return len(indexes) if indexes is not None else num_deepstack(_whole_config(path))
    if source.model_type not in _DEEPSTACK_FAMILIES:
        return 0
    return len(source.vision_config.deepstack_visual_indexes)


def _config_file(source: str | Path) -> Path:
    path = Path(source)
    return path / "config.json" if path.is_dir() else path


def _whole_config(path: Path) -> "PreTrainedConfig":
    """Return a config.json with its family's defaults filled in."""
    from transformers import AutoConfig

    try:
        return AutoConfig.from_pretrained(path, local_files_only=True)
    except (OSError, ValueError, KeyError) as error:
        raise InputError(f"{path}: {str(error).strip().splitlines()[0]}") from None


def image_token_id(config: "PreTrainedConfig") -> int | None:
    """Return the id of the token that stands for a piece of an image; None for a text-only model.

    `config` is the whole model's: older families (LLaVA, Gemma 3) call it `image_token_index`.
    """
    for name in ("image_token_id", "image_token_index"):
        value = getattr(config, name, None)
        if value is not None:
            return int(value)
    return None
