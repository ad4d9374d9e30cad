"""The similarity scores that a plan is made from: one number per window of layers."""

import math
from dataclasses import dataclass
from pathlib import Path

from interlace.errors import InputError
from interlace.io import digest, read_json

MEANS = {"paper": "token_mean", "released": "sample_mean"}
SIZES = (1, 2, 3)


@dataclass(frozen=True)
class ScoreTable:
    """Mean cosine similarity of the hidden state before and after each window of layers.

    `packs[k][i]` is the score of layers i..i+k-1 (0-based); all starts 0..L-k are there.
    """

    num_layers: int
    packs: dict[int, list[float]]
    digest: str | None = None

    def __post_init__(self) -> None:
        for size, scores in self.packs.items():
            if len(scores) != self.num_layers - size + 1:
                raise InputError(
                    f"pack-{size} has {len(scores)} windows; {self.num_layers} layers have "
                    f"{self.num_layers - size + 1}"
                )
            for start, score in enumerate(scores):
                if not isinstance(score, int | float) or not math.isfinite(score):
                    raise InputError(f"pack-{size}: the score of window {start} is {score}")

    def windows(
        self, size: int, reading: str, protect: frozenset[int] = frozenset()
    ) -> dict[int, float]:
        """Return start -> score of the windows of `size` that `reading` considers.

        `paper` considers every window; `released` stops one short, so that the last layer is in
        none. Windows that hold a layer of `protect` are left out.
        """
        scores = self.packs[size]
        last = len(scores) - (reading == "released")
        return {
            start: scores[start]
            for start in range(last)
            if protect.isdisjoint(range(start, start + size))
        }


def read_scores(folder: str | Path, reading: str, model: str, num_layers: int) -> ScoreTable:
    """Read `pack1.json`, `pack2.json` and `pack3.json` of `folder`.

    `paper` takes the mean over all tokens, `released` the mean over samples of their token means.
    Raises `InputError` for scores of another model or depth, missing windows and NaN.
    """
    packs: dict[int, list[float]] = {}
    contents = []
    for size in SIZES:
        path = Path(folder) / f"pack{size}.json"
        body = read_json(path)
        try:
            found = (body["model"], body["num_layers"], body["size"])
            windows = {window["start"]: window[MEANS[reading]] for window in body["windows"]}
        except (KeyError, TypeError) as error:
            raise InputError(f"{path}: not a score file ({error!r}); score again") from None
        if found != (model, num_layers, size):
            raise InputError(
                f"{path}: scores of {found[0]}, {found[1]} layers, pack-{found[2]}; needed are "
                f"{model}, {num_layers} layers, pack-{size}: score this model again"
            )
        missing = sorted(set(range(num_layers - size + 1)) - set(windows))
        if missing:
            raise InputError(f"{path}: window {missing[0]} is missing; score this model again")
        packs[size] = [windows[start] for start in range(num_layers - size + 1)]
        for start, score in enumerate(packs[size]):
            if not isinstance(score, int | float) or not math.isfinite(score):
                raise InputError(
                    f"{path}: {MEANS[reading]} of window {start} is {score}; score this model again"
                )
        contents.append(body["windows"])
    return ScoreTable(num_layers, packs, digest(contents))
