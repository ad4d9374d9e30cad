"""Where each family of models keeps its decoder layers, and what flows in and out of them."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

from interlace.errors import InputError
from interlace.io import read_json

if TYPE_CHECKING:  # torch is heavy; reading a depth from a config does without it
    import torch
    from transformers import PreTrainedConfig, PreTrainedModel

# model_type of the config -> attribute path, from the base model, of the decoder's ModuleList.
DECODER_PATHS: dict[str, str] = {
    "qwen3_vl": "language_model.layers",
    "qwen2_5_vl": "language_model.layers",
    "qwen2_vl": "language_model.layers",
    "llama": "layers",
    "qwen2": "layers",
    "qwen3": "layers",
}


def decoder_stack(model: "PreTrainedModel") -> tuple["torch.nn.Module", str]:
    """Return the module that holds the decoder's ModuleList and the attribute's name there.

    Raises InputError for a family that DECODER_PATHS does not know.
    """
    family = model.config.model_type
    if family not in DECODER_PATHS:
        known = ", ".join(sorted(DECODER_PATHS))
        raise InputError(
            f"model type {family!r}: unknown family, its decoder layers cannot be found; known are"
            f" {known} (add a line to interlace.decoder.layers.DECODER_PATHS)"
        )
    *parents, name = DECODER_PATHS[family].split(".")
    holder = model.base_model
    for parent in parents:
        holder = getattr(holder, parent)
    return holder, name


def decoder_layers(model: "PreTrainedModel") -> "torch.nn.ModuleList":
    """Return the language decoder's layers, first to last; InputError for an unknown family."""
    holder, name = decoder_stack(model)
    return getattr(holder, name)


def text_config(config: "PreTrainedConfig") -> "PreTrainedConfig":
    """Return the part of `config` that describes the language decoder (itself if text only)."""
    return config.get_text_config(decoder=True)


def num_layers(source: "str | Path | PreTrainedConfig") -> int:
    """Return the number of decoder layers a checkpoint folder, its config.json or a config states.

    Reading a folder needs neither torch nor transformers. Raises InputError if none is stated.
    """
    if not isinstance(source, str | Path):
        return int(text_config(source).num_hidden_layers)
    path = Path(source)
    path = path / "config.json" if path.is_dir() else path
    config = read_json(path)
    config = config.get("text_config", config)
    if not isinstance(config.get("num_hidden_layers"), int):
        raise InputError(f"{path}: states no num_hidden_layers; is it a model's config.json?")
    return config["num_hidden_layers"]


def num_deepstack(source: "str | Path | PreTrainedConfig") -> int:
    """Return how many of the first decoder positions get visual features added (DeepStack).

    Qwen3-VL adds them after positions 0, 1, ... by position, outside the layer, so that dropping
    one of these layers moves the injection to the layer that takes its place.
    """
    if isinstance(source, str | Path):
        path = Path(source)
        config = read_json(path / "config.json" if path.is_dir() else path)
        return len(config.get("vision_config", {}).get("deepstack_visual_indexes", ()))
    return len(getattr(getattr(source, "vision_config", None), "deepstack_visual_indexes", ()))


class BoundaryRecorder:
    """Collect each decoder layer's input a_l and raw output b_l while in the `with` block.

    `inputs[l]` and `outputs[l]` are (B, T, D) tensors of the latest forward pass, as the layers see
    them: a_{l+1} differs from b_l where DeepStack adds visual features between two layers, and the
    last b is before the final norm. `output_hidden_states` of transformers shows neither reliably
    (its meaning changed between 4.57 and 5). Run `model.model(**batch)` to save the logits.
    """

    def __init__(self, model: "PreTrainedModel"):
        self._layers = decoder_layers(model)
        self._handles: list[Any] = []
        self.clear()

    def clear(self) -> None:
        """Let go of the recorded tensors."""
        self.inputs: list[torch.Tensor | None] = [None] * len(self._layers)
        self.outputs: list[torch.Tensor | None] = [None] * len(self._layers)

    def __enter__(self) -> "BoundaryRecorder":
        for index, layer in enumerate(self._layers):
            self._handles += [
                layer.register_forward_pre_hook(self._input_hook(index), with_kwargs=True),
                layer.register_forward_hook(self._output_hook(index)),
            ]
        return self

    def __exit__(self, *_: object) -> None:
        for handle in self._handles:
            handle.remove()
        self._handles.clear()

    def _input_hook(self, index: int):
        def hook(_module: Any, args: tuple, kwargs: dict) -> None:
            self.inputs[index] = args[0] if args else kwargs["hidden_states"]

        return hook

    def _output_hook(self, index: int):
        def hook(_module: Any, _args: tuple, output: Any) -> None:
            self.outputs[index] = output[0] if isinstance(output, tuple) else output

        return hook


hidden_boundaries = BoundaryRecorder
