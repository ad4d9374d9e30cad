"""Run the decoder's layers on recorded states: one alone, or the last of any choice of them."""

import contextlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import torch
from transformers import PreTrainedModel

from interlace.decoder.layers import decoder_layers, decoder_stack


class DecoderCall:
    """One batch up to the decoder: embeddings, masks, positions and DeepStack features, recorded.

    The vision tower runs once. After that, layers run through the decoder's own forward, so that
    whatever happens between two layers (DeepStack adds visual features after the first ones)
    happens as in the model. A raw output is what a layer returns, before anything is added to it.
    """

    def __init__(self, model: PreTrainedModel, batch: Mapping[str, torch.Tensor]):
        self._stack = decoder_stack(model)
        self._layers = decoder_layers(model)
        inputs = {key: value.to(model.device) for key, value in batch.items() if key != "labels"}
        self.real_BT = inputs["attention_mask"].bool()
        if self._stack is model.base_model:
            self._args, self._kwargs = (), {**inputs, "use_cache": False}
            return
        calls: list[tuple[tuple, dict[str, Any]]] = []
        handle = self._stack.register_forward_pre_hook(
            lambda _module, args, kwargs: calls.append((args, kwargs)), with_kwargs=True
        )
        indices = range(len(self._layers))
        try:
            with self._using([_StandIn(layer) for layer in self._layers], indices):
                model.base_model(**inputs, use_cache=False)
        finally:
            handle.remove()
        self._args, self._kwargs = calls[0]

    def run(
        self,
        layers: Sequence[int],
        start: int = 0,
        previous_BTD: torch.Tensor | None = None,
        on_output: Callable[[int, torch.Tensor], None] | None = None,
    ) -> torch.Tensor:
        """Return the final hidden state (B, T, D), after the last norm, of a decoder of `layers`.

        `layers` are indices, ascending; the others are gone as in a checkpoint without them, so
        DeepStack features enter by position. The first `start` are not run: `previous_BTD` is the
        raw output of the last of them. `on_output(position, raw output)` is called for each layer
        that runs.
        """
        modules = [
            _StandIn(self._layers[index], previous_BTD if position == start - 1 else None)
            if position < start
            else self._layers[index]
            for position, index in enumerate(layers)
        ]
        with contextlib.ExitStack() as stack:
            for position in range(start, len(layers)) if on_output is not None else ():
                handle = modules[position].register_forward_hook(
                    lambda _module, _args, output, position=position: on_output(
                        position, _raw(output)
                    )
                )
                stack.callback(handle.remove)
            stack.enter_context(self._using(modules, layers))
            return self._stack(*self._args, **self._kwargs).last_hidden_state

    def run_layer(self, index: int, previous_BTD: torch.Tensor | None) -> torch.Tensor:
        """Return the raw output (B, T, D) of layer `index` alone, at its own position.

        `previous_BTD` is the raw output of the layer before it, None for the first.
        """
        modules: list[torch.nn.Module] = [_StandIn(layer) for layer in self._layers]
        modules[index] = self._layers[index]
        if index > 0:
            modules[index - 1] = _StandIn(self._layers[index - 1], previous_BTD)
        outputs: list[torch.Tensor] = []
        handle = self._layers[index].register_forward_hook(
            lambda _module, _args, output: outputs.append(_raw(output))
        )
        try:
            with self._using(modules, range(len(modules))):
                self._stack(*self._args, **self._kwargs)
        finally:
            handle.remove()
        return outputs[0]

    @contextlib.contextmanager
    def _using(self, modules: Sequence[torch.nn.Module], indices: Sequence[int]) -> Iterator[None]:
        """Put `modules` in the decoder's place, standing for the layers `indices` of its own.

        Decoders that mix kinds of attention look a layer's kind up by position in the config.
        """
        config = self._stack.config
        kinds = getattr(config, "layer_types", None)
        self._stack.layers = torch.nn.ModuleList(modules)
        if kinds is not None:
            config.layer_types = [kinds[index] for index in indices]
        try:
            yield
        finally:
            self._stack.layers = self._layers
            if kinds is not None:
                config.layer_types = kinds


class _StandIn(torch.nn.Module):
    """Takes a layer's place: gives a recorded output, or its input back."""

    def __init__(self, like: torch.nn.Module, output: torch.Tensor | None = None):
        super().__init__()
        self.recorded = output
        if hasattr(like, "attention_type"):  # some decoders look a layer's kind up here
            self.attention_type = like.attention_type

    def forward(self, hidden_states: torch.Tensor, *_: Any, **__: Any) -> torch.Tensor:
        return hidden_states if self.recorded is None else self.recorded


def _raw(output: Any) -> torch.Tensor:
    return output[0] if isinstance(output, tuple) else output
