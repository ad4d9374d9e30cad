"""What a method of choosing layers is given, and what it answers."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from interlace.selection.scores import ScoreTable

COSINE = "cosine similarity"
RELATIVE_LOSS = "loss ÷ loss of dense"


@dataclass(frozen=True)
class Request:
    """The question a method answers: which `num_dropped` of `num_layers` layers (0-based) to drop.

    `reading` is `paper` or `released` (the authors' code, where it departs from the paper);
    `protect` holds layers that are neither dropped nor tuned. None for a method that does not need
    them: `scores`, `removals` (SLEB's layers in the order of removal) and `losses` (by layer: of
    the model without it alone, or for SLEB without it and those removed before); `base_loss` is the
    dense model's.
    """

    num_layers: int
    num_dropped: int
    reading: str = "paper"
    seed: int = 0
    protect: frozenset[int] = frozenset()
    scores: ScoreTable | None = None
    removals: Sequence[int] | None = None
    losses: Mapping[int, float] | None = None
    base_loss: float = 1.0

    def free(self) -> list[int]:
        """Return the layers that may be dropped or tuned."""
        return [layer for layer in range(self.num_layers) if layer not in self.protect]

    def windows(self, size: int) -> dict[int, float]:
        """Return start -> score of the windows that the reading considers, no protected layer in."""
        assert self.scores is not None
        return self.without_protected(self.scores.read(size, self.reading), size)

    def without_protected(self, scores: Sequence[float | None], size: int = 1) -> dict[int, float]:
        """Return start -> score of the windows of `size` that were scored and are not protected."""
        return {
            start: score
            for start, score in enumerate(scores)
            if score is not None and self.protect.isdisjoint(range(start, start + size))
        }


@dataclass
class Choice:
    """A method's answer; `how_reached` says it in a sentence.

    `triplets` are windows in the order taken. `order` is the dropped layers in the order taken,
    empty where there was none. `measures` are the scores that the choice went by (`measure`).
    """

    drop: list[int]
    tune: list[int]
    how_reached: str
    triplets: list[dict[str, Any]] = field(default_factory=list)
    order: list[int] = field(default_factory=list)
    measures: list[dict[str, Any]] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class Method:
    """An entry of the registry: `choose`, its name in tables and what it needs of other stages.

    `needs_scores`: windows.parquet; `needs_sleb`: sleb.json; `needs_losses`: block_losses.json;
    `needs_ratio`: False where nothing is dropped. `by_chance`: another seed is another plan.
    `needs_window`: how many layers the windows have that are read to drop K, where not 1 to 3, in
    every reading with the last layer in them; imported scores hold none such. `suffix_ft`: a tuned
    variant is called `-FT`.
    """

    choose: Callable[[Request], Choice]
    label: str
    needs_scores: bool = False
    needs_sleb: bool = False
    needs_losses: bool = False
    needs_ratio: bool = True
    by_chance: bool = False
    needs_window: Callable[[int], int] | None = None
    suffix_ft: bool = False


def measure(
    name: str,
    values: Mapping[int, float] | Sequence[float | None],
    num_layers: int,
    size: int = 1,
    unit: str = COSINE,
) -> dict[str, Any]:
    """Return a measure as plans hold it: a value per window of `size` layers, by its first layer.

    `values` maps starts to values, or lists them; a start without one gets None.
    """
    known = dict(values) if isinstance(values, Mapping) else dict(enumerate(values))
    listed = [known.get(start) for start in range(num_layers - size + 1)]
    return {"name": name, "unit": unit, "size": size, "values": listed}


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
