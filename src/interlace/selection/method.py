"""What a method of choosing layers is given, and what it answers."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from interlace.selection.scores import ScoreTable

READINGS = ("paper", "released")


@dataclass(frozen=True)
class Request:
    """The question a method answers: which `num_dropped` of `num_layers` layers (0-based) to drop.

    `reading` is `paper` or `released` (the authors' code, where it departs from the paper);
    `protect` holds layers that are neither dropped nor tuned; `scores` and `removals` (SLEB's
    layers in the order of removal) are None for a method that does not need them.
    """

    num_layers: int
    num_dropped: int
    reading: str = "paper"
    seed: int = 0
    protect: frozenset[int] = frozenset()
    scores: ScoreTable | None = None
    removals: Sequence[int] | None = None

    def free(self) -> list[int]:
        """Return the layers that may be dropped or tuned."""
        return [layer for layer in range(self.num_layers) if layer not in self.protect]


@dataclass
class Choice:
    """A method's answer. `triplets` in the order taken; `how_reached` says it in a sentence."""

    drop: list[int]
    tune: list[int]
    how_reached: str
    triplets: list[dict[str, Any]] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class Method:
    """An entry of the registry: `choose` and the results of other stages that it needs."""

    choose: Callable[[Request], Choice]
    label: str
    needs_scores: bool = False
    needs_sleb: bool = False
    needs_ratio: bool = True


def tune_after(dropped: Sequence[int], request: Request) -> list[int]:
    """Return one layer to tune for each of `dropped`, in that order: the layer after it.

    Where that layer is dropped, protected or already taken, the next one that is free; where none
    follows, the nearest free one before. May return fewer than `dropped` has.
    """
    available = [layer for layer in request.free() if layer not in set(dropped)]
    tune: list[int] = []
    for layer in dropped:
        after = [other for other in available if other > layer]
        before = [other for other in available if other < layer]
        if after or before:
            tune.append(after[0] if after else before[-1])
            available.remove(tune[-1])
    return tune
