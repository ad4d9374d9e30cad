"""Vision features in place of pixels: how a model, a processor and a batch take stored ones.

Shapes: n image tokens, P patches, F = 1 + K features of a token (what the merger gives, then what
each of K DeepStack mergers gives), D hidden size of the decoder, I images of a sample.

Stored features travel under the key of the pixels: `pixel_values` (n, F, D) where live ones are
(P, C), so that whatever joins, sends and casts pixels does the same with them. Transformers has a
keyword for features of its own (`mm_encoder_outputs`), which 5.17 lacks.
"""

import copy
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from transformers import BatchFeature, PreTrainedConfig, PreTrainedModel
from transformers.image_utils import make_flat_list_of_images
from transformers.modeling_outputs import BaseModelOutputWithPooling
from transformers.models.qwen3_vl.modeling_qwen3_vl import BaseModelOutputWithDeepstackFeatures

from interlace.io import read_json

# Families whose tower is the module `visual` of the base model, called with patches and grids.
FAMILIES = ("qwen3_vl", "qwen3_vl_moe", "qwen2_5_vl", "qwen2_vl")
_GRID = "interlace_grid"


def why_not(source: str | Path | PreTrainedConfig) -> str | None:
    """Return why the features of a checkpoint folder or a config cannot be stored, or None."""
    if isinstance(source, str | Path):
        kind = read_json(Path(source) / "config.json").get("model_type")
    else:
        kind = source.model_type
    if kind in FAMILIES:
        return None
    return f"vision features are stored for {', '.join(FAMILIES)} only, this is {kind}"


def vision_tower(model: PreTrainedModel) -> torch.nn.Module:
    """Return the vision tower of a model of `FAMILIES`, mergers included."""
    return model.base_model.visual


def tower_features(
    tower: torch.nn.Module, pixels_PC: torch.Tensor, grids_I3: torch.Tensor
) -> torch.Tensor:
    """Run the tower; return (n, F, D), the tokens of all images one after the other."""
    output = tower(pixels_PC.type(tower.dtype), grid_thw=grids_I3, return_dict=True)
    deepstack = getattr(output, "deepstack_features", None) or []
    return torch.stack([output.pooler_output, *deepstack], dim=1)


def accept_features(model: PreTrainedModel) -> None:
    """Let the vision tower hand on `pixel_values` that are features; pixels go through it as ever.

    Call it before an engine wraps the model. With features no weight of the tower is touched.
    """
    tower = vision_tower(model)
    live = tower.forward

    def forward(hidden_states: torch.Tensor, *args: Any, **kwargs: Any) -> Any:
        if hidden_states.dim() == 2:
            return live(hidden_states, *args, **kwargs)
        pooled, *deepstack = hidden_states.unbind(1)
        if not deepstack:
            return BaseModelOutputWithPooling(pooler_output=pooled)
        return BaseModelOutputWithDeepstackFeatures(
            pooler_output=pooled, deepstack_features=deepstack
        )

    tower.forward = forward


def stand_in(grid: Sequence[int]) -> Image.Image:
    """Return a picture of one pixel for an image whose grid (t, h, w) of patches is known."""
    image = Image.new("RGB", (1, 1))
    image.info[_GRID] = tuple(int(size) for size in grid)
    return image


def without_pixels(processor: Any) -> Any:
    """Return a processor that makes the same tokens of `stand_in` images, and `pixel_values` of
    length 0; a sample of other images is processed as ever."""
    light = copy.copy(processor)
    light.image_processor = _Grids(processor.image_processor)
    return light


class _Grids:
    """Takes an image processor's place; everything but images with a known grid is left to it."""

    def __init__(self, like: Any) -> None:
        self._like = like

    def __call__(self, images: Any, *args: Any, **kwargs: Any) -> BatchFeature:
        grids = [image.info.get(_GRID) for image in make_flat_list_of_images(images)]
        if None in grids:
            return self._like(images, *args, **kwargs)
        return BatchFeature({"pixel_values": torch.empty(0), "image_grid_thw": torch.tensor(grids)})

    def __getattr__(self, name: str) -> Any:
        if name == "_like":  # not there yet while being unpickled
            raise AttributeError(name)
        return getattr(self._like, name)
