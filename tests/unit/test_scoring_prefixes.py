"""Known prefixes: only exact ones are used, no more are kept than was asked for."""

import itertools

import torch
from hypothesis import given
from hypothesis import strategies as st

from interlace.scoring.prefixes import PrefixRun, Storage


class CountingCall:
    """Stands in for a DecoderCall: a state is the tuple of the layers that made it, as numbers."""

    def __init__(self):
        self.ran = []

    def run(self, layers, start=0, previous_BTD=None, on_output=None):
        state = [] if previous_BTD is None else previous_BTD.tolist()
        assert len(state) == start
        for position in range(start, len(layers)):
            state = [*state, layers[position]]
            self.ran.append(layers[position])
            on_output(position, torch.tensor(state))
        return torch.tensor(state)


@given(
    depth=st.integers(4, 14),
    states=st.integers(0, 120),
    order=st.randoms(use_true_random=False),
    count=st.integers(1, 5),
)
def test_every_network_runs_as_its_own_layers_say_within_the_storage(depth, states, order, count):
    storage = Storage.fitting(depth, states)
    call = CountingCall()
    run = PrefixRun(call)
    left = tuple(range(depth))
    for _ in range(min(count, depth - 3)):
        candidates = [None, *left[1:-1]]
        order.shuffle(candidates)
        for out in candidates:
            wanted = [layer for layer in left if layer != out]
            assert run.forward(left, out, storage).tolist() == wanted
            assert len(run) <= states
        gone = order.choice(left[1:-1])
        left = tuple(layer for layer in left if layer != gone)
        run.forget(gone)
    assert run.layer_evaluations == len(call.ran)


@given(depth=st.integers(4, 40))
def test_more_memory_is_never_a_sparser_storage(depth):
    everything = (depth - 2) + (depth - 4) * (depth - 3) // 2
    assert Storage.fitting(depth, everything) == Storage(1, 1)
    assert Storage.fitting(depth, everything - 1) != Storage(1, 1)
    assert Storage.fitting(depth, depth - 2).current == 1
    assert Storage.fitting(depth, 0) == Storage(0, 0)

    def sparseness(storage):  # 0 keeps none: sparser than any number
        return [every or depth for every in (storage.current, storage.candidates)]

    found = [sparseness(Storage.fitting(depth, states)) for states in range(everything + 2)]
    for less, more in itertools.pairwise(found):
        assert more <= less


def test_a_network_that_is_all_known_runs_nothing():
    call = CountingCall()
    run = PrefixRun(call)
    run.forward((0, 1, 2, 3, 4), None, Storage(1, 1))
    call.ran.clear()
    run.forward((0, 1, 2), None, Storage(1, 1))
    assert call.ran == []
    run.forget(1)
    run.forward((0, 2, 3), None, Storage(1, 1))
    assert call.ran == [2, 3]
