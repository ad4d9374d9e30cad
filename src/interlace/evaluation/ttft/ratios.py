"""Ratios of times and how they vary: of a measurement, and of the tables. Needs no torch."""

from collections.abc import Iterator

import numpy as np

STAGES = ("vision", "projector", "decoder", "first_sampling", "rest")
"""Of a first token, in their order. `vision` is the tower without the mergers, which with those of
DeepStack are the `projector`; `decoder` goes from the call of the language model, with its inputs
embedded, to the logits of the last position; `first_sampling` from there to the token's id on the
host; `rest` is what is left of the whole: embeddings, position ids, and what lies between."""

RESAMPLES = 2000
_ROUNDING = 1e-9  # a narrower interval, relatively, has no width
_BLOCK = 2**20  # drawn values at a time, 8 MB


def draws(
    dense: np.ndarray, pruned: np.ndarray, rng: np.random.Generator
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Yield `RESAMPLES` draws of pairs, (rows, samples) each, in blocks that take little memory."""
    rows = max(1, _BLOCK // len(dense))
    for start in range(0, RESAMPLES, rows):
        drawn = rng.integers(len(dense), size=(min(rows, RESAMPLES - start), len(dense)))
        yield dense[drawn], pruned[drawn]


def interval(values: np.ndarray) -> tuple[float, float] | None:
    """Return the 95 % percentile interval of drawn ratios; None where all draws give the same."""
    low, high = map(float, np.percentile(values, [2.5, 97.5]))
    return (low, high) if has_width(low, high) else None


def has_width(low: float, high: float) -> bool:
    """Whether an interval of a ratio is more than rounding."""
    return high - low > _ROUNDING * high
