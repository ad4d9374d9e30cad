"""States of the decoder after its first layers, kept so that no layer is run twice in vain.

What a layer gives depends on the layers before it only. A state is therefore named by these: the
raw output after the layers (0, 1, 3) serves every network that begins with them, and taking a
layer out of the model outdates exactly the states whose names hold it.
"""

from dataclasses import dataclass

import torch

from interlace.decoder.replay import DecoderCall


@dataclass(frozen=True)
class Storage:
    """Which states of a search are kept: where none are missing, as few layers run as can be.

    `current`: states after every so many layers of the layers left; `candidates`: the same for
    these with one more taken out. 0 keeps none.
    """

    current: int
    candidates: int

    @classmethod
    def fitting(cls, depth: int, states: int) -> "Storage":
        """Return the densest storage that holds at most `states` states of `depth` layers.

        The current layers' states come first: they serve every candidate.
        """
        if depth - 2 > states:
            return cls(-(-(depth - 2) // states) if states > 0 else 0, 0)
        for every in range(1, depth - 2):
            # After m layers there is a state for each of the m - 1 candidates before (not layer 0).
            if depth - 2 + sum(m - 1 for m in range(every, depth - 2, every)) <= states:
                return cls(1, every)
        return cls(1, 0)

    def __str__(self) -> str:
        """Return in words what is kept."""
        often = {0: "none", 1: "all"}
        current, candidates = (
            often.get(every, f"one in {every}") for every in (self.current, self.candidates)
        )
        return f"{current} of the layers left, {candidates} of the candidates"

    def keeps(self, length: int, candidate: bool) -> bool:
        """Return whether the state after `length` layers is kept."""
        every = self.candidates if candidate else self.current
        return every > 0 and length % every == 0


CURRENT = Storage(1, 0)  # of the current layers every state, of candidates none


class PrefixRun:
    """One batch through any choice of the decoder's layers, from the longest prefix known.

    `layer_evaluations` counts the layers that ran.
    """

    def __init__(self, call: DecoderCall) -> None:
        self._call = call
        self._states: dict[tuple[int, ...], torch.Tensor] = {}
        self.layer_evaluations = 0

    def __len__(self) -> int:
        """Return how many states are held."""
        return len(self._states)

    def forward(
        self, left: tuple[int, ...], out: int | None = None, storage: Storage = CURRENT
    ) -> torch.Tensor:
        """Return the final hidden state (B, T, D) of a decoder of the layers `left` but `out`.

        Keeps the states that `storage` asks for and a later candidate, or a later search without
        `out`, can start from.
        """
        position = len(left) if out is None else left.index(out)
        layers = left[:position] + left[position + 1 :]
        start = max(
            (length for length in range(1, len(layers) + 1) if layers[:length] in self._states),
            default=0,
        )

        def keep(at: int, output_BTD: torch.Tensor) -> None:
            length = at + 1
            candidate = length > position
            useful = length <= len(left) - (3 if candidate else 2)  # the last layer always runs
            if useful and storage.keeps(length, candidate):
                self._states[layers[:length]] = output_BTD

        self.layer_evaluations += len(layers) - start
        return self._call.run(layers, start, self._states.get(layers[:start]), keep)

    def forget(self, layer: int) -> None:
        """Drop the states of networks that hold `layer`: it is taken out for good."""
        self._states = {key: state for key, state in self._states.items() if layer not in key}
