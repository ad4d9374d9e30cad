"""What flows in and out of a model's decoder layers, for tests to compare with."""

from typing import Any

import torch
from transformers import PreTrainedModel

from interlace.decoder.layers import decoder_layers


class BoundaryRecorder:
    """Collect each decoder layer's input a_l and raw output b_l while in the `with` block.

    `inputs[l]` and `outputs[l]` are (B, T, D) tensors of the latest forward pass, as the layers see
    them: a_{l+1} differs from b_l where DeepStack adds visual features between two layers, and the
    last b is before the final norm. `output_hidden_states` of transformers shows neither reliably
    (its meaning changed between 4.57 and 5). Run `model.model(**batch)` to save the logits.
    """

    def __init__(self, model: PreTrainedModel):
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
