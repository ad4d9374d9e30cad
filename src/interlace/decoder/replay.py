"""Run one decoder layer inside the model's own forward pass, on recorded states."""

import contextlib
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
from transformers import PreTrainedModel

from interlace.decoder.layers import decoder_layers, decoder_stack


class DecoderCall:
    """One batch up to the decoder: embeddings, masks, positions and DeepStack features, recorded.

    The vision tower runs once. `run_layer` then runs a single layer on what the layer before it
    gave, through the decoder's own forward, so that whatever happens between two layers (DeepStack
    adds visual features after the first ones) happens as in the model.
    """

    def __init__(self, model: PreTrainedModel, batch: Mapping[str, torch.Tensor]):
        self._stack, self._name = decoder_stack(model)
        inputs = {key: value.to(model.device) for key, value in batch.items() if key != "labels"}
        self.real_BT = inputs["attention_mask"].bool()
        if self._stack is model.base_model:
            self._args, self._kwargs = (), {**inputs, "use_cache": False}
            return
        calls: list[tuple[tuple, dict[str, Any]]] = []
        handle = self._stack.register_forward_pre_hook(
            lambda _module, args, kwargs: calls.append((args, kwargs)), with_kwargs=True
        )
        try:
            with self._layers([_StandIn(layer) for layer in decoder_layers(model)]):
                model.base_model(**inputs, use_cache=False)
        finally:
            handle.remove()
        self._args, self._kwargs = calls[0]

    def run_layer(self, index: int, previous_BTD: torch.Tensor | None) -> torch.Tensor:
        """Return the raw output (B, T, D) of layer `index`.

        `previous_BTD` is the raw output of the layer before it, None for the first.
        """
        layers = list(getattr(self._stack, self._name))
        used = [_StandIn(layer) for layer in layers]
        used[index] = layers[index]
        if index > 0:
            used[index - 1] = _StandIn(layers[index - 1], previous_BTD)
        outputs: list[torch.Tensor] = []
        handle = layers[index].register_forward_hook(
            lambda _module, _args, output: outputs.append(
                output[0] if isinstance(output, tuple) else output
            )
        )
        try:
            with self._layers(used):
                self._stack(*self._args, **self._kwargs)
        finally:
            handle.remove()
        return outputs[0]

    @contextlib.contextmanager
    def _layers(self, layers: Sequence[torch.nn.Module]) -> Iterator[None]:
        own = getattr(self._stack, self._name)
        setattr(self._stack, self._name, torch.nn.ModuleList(layers))
        try:
            yield
        finally:
            setattr(self._stack, self._name, own)


class _StandIn(torch.nn.Module):
    """Takes a layer's place: gives a recorded output, or its input back."""

    def __init__(self, like: torch.nn.Module, output: torch.Tensor | None = None):
        super().__init__()
        self.recorded = output
        if hasattr(like, "attention_type"):  # read by decoders that mix kinds of attention
            self.attention_type = like.attention_type

    def forward(self, hidden_states: torch.Tensor, *_: Any, **__: Any) -> torch.Tensor:
        return hidden_states if self.recorded is None else self.recorded
