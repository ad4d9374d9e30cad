"""A decoder replayed without some layers gives what the model with these layers dropped gives."""

import copy

import pytest
import torch

from interlace.decoder.layers import decoder_layers
from interlace.decoder.replay import DecoderCall
from interlace.decoder.surgery import drop_layers
from tests.boundaries import BoundaryRecorder
from tests.tiny_families import FAMILIES, tiny_batch, tiny_model

LAYERS = 6


@pytest.mark.parametrize("family", FAMILIES)
@torch.inference_mode()
def test_a_choice_of_layers_gives_what_the_dropped_model_gives(family):
    model, batch = tiny_model(family, LAYERS), tiny_batch(family)
    call = DecoderCall(model, batch)
    kinds = getattr(model.get_decoder().config, "layer_types", None)
    own = list(decoder_layers(model))
    for layers in ([0, 1, 2, 3, 4, 5], [0, 2, 3, 5], [1, 4, 5]):
        pruned = copy.deepcopy(model)
        drop_layers(pruned, [layer for layer in range(LAYERS) if layer not in layers])
        with BoundaryRecorder(pruned) as recorded:
            expected = pruned.base_model(**batch, use_cache=False).last_hidden_state
        outputs = {}
        found = call.run(layers, on_output=outputs.__setitem__)
        assert torch.equal(found, expected)
        for position in range(len(layers)):
            assert torch.equal(outputs[position], recorded.outputs[position])
        for start in range(1, len(layers) + 1):
            ran = []
            again = call.run(
                layers, start, outputs[start - 1], lambda position, _, ran=ran: ran.append(position)
            )
            assert torch.equal(again, expected)
            assert ran == list(range(start, len(layers)))
    assert all(a is b for a, b in zip(decoder_layers(model), own, strict=True))
    assert getattr(model.get_decoder().config, "layer_types", None) == kinds


@pytest.mark.parametrize("family", ["qwen3_vl", "gemma3", "llama"])
@torch.inference_mode()
def test_one_layer_runs_at_its_own_position(family):
    model, batch = tiny_model(family, LAYERS), tiny_batch(family)
    call = DecoderCall(model, batch)
    with BoundaryRecorder(model) as recorded:
        model.base_model(**batch, use_cache=False)
    outputs = list(recorded.outputs)
    for index in range(LAYERS):
        previous = outputs[index - 1] if index else None
        assert torch.equal(call.run_layer(index, previous), outputs[index])


@torch.inference_mode()
def test_the_decoder_is_put_back_after_an_error():
    model, batch = tiny_model("qwen2", LAYERS), tiny_batch("qwen2")
    call = DecoderCall(model, batch)
    expected = model(**batch).logits
    kinds = list(model.config.layer_types)

    def fail(*_):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        call.run([0, 4, 5], on_output=fail)
    assert (len(decoder_layers(model)), model.config.layer_types) == (LAYERS, kinds)
    assert not any(layer._forward_hooks for layer in decoder_layers(model))
    assert torch.equal(model(**batch).logits, expected)
