"""Bootstrap intervals of scores, paired by construction, and what follows from them.

A variant's score is resampled by drawing as many questions as the benchmark has, with replacement
(Efron and Tibshirani 1993, chapters 6 and 13). Which questions are drawn depends on the seed, the
benchmark's name and the set of its questions alone. Two variants that answered the same questions
are therefore resampled alike: their resamples can be subtracted or divided position by position.
"""

from collections.abc import Sequence

import numpy as np
import pandas as pd

from interlace.io import digest

RESAMPLES = 2000
_DRAWS_AT_ONCE = 2**21  # bounds the memory: 16 MB a table


def resampled_scores(outcomes: pd.DataFrame, seed: int, benchmark: str) -> np.ndarray:
    """Return the score (0-100) of each resample, shape (RESAMPLES,); NaN where it is undefined.

    `outcomes` has the columns `question`, `value` and `weight`; rows of one question are drawn
    together, and their order does not matter. Undefined is a resample without any weight: of POPE,
    one in which nothing is yes, said or true.
    """
    # Sorted within a question too: the last bit of a sum depends on the order.
    rows = outcomes[["question", "value", "weight"]].sort_values(["question", "value", "weight"])
    sums = rows.groupby("question", sort=True)[["value", "weight"]].sum()
    assert len(sums), "no outcomes to resample"
    value, weight = sums["value"].to_numpy(float), sums["weight"].to_numpy(float)
    rng = np.random.default_rng(int(digest([seed, benchmark, list(map(str, sums.index))]), 16))
    step = max(1, _DRAWS_AT_ONCE // len(sums))
    totals = np.empty((2, RESAMPLES))
    for start in range(0, RESAMPLES, step):
        part = slice(start, min(start + step, RESAMPLES))
        drawn = rng.integers(len(sums), size=(part.stop - start, len(sums)))
        totals[:, part] = value[drawn].sum(axis=1), weight[drawn].sum(axis=1)
    scores = np.full(RESAMPLES, np.nan)
    np.divide(totals[0], totals[1], out=scores, where=totals[1] > 0)
    return 100 * scores


def interval(values: np.ndarray) -> list[float]:
    """Return the 2.5th and 97.5th percentile of resampled values; those that are not finite drop out.

    [nan, nan] if none is left.
    """
    defined = values[np.isfinite(values)]
    if not len(defined):
        return [float("nan")] * 2
    low, high = np.percentile(defined, [2.5, 97.5])
    return [float(low), float(high)]


def bootstrap_interval(outcomes: pd.DataFrame, seed: int, benchmark: str) -> list[float]:
    """Return the 95 % percentile bootstrap interval of a score (0-100).

    [0, 0] where no resample has a score: VLMEvalKit's F1 of nothing said and nothing true is 0.
    """
    scores = resampled_scores(outcomes, seed, benchmark)
    return [0.0, 0.0] if np.isnan(scores).all() else interval(scores)


def same_questions(a: pd.DataFrame, b: pd.DataFrame) -> bool:
    """Return whether two variants' outcomes are of the same questions, row for row in any order.

    Only then are their `resampled_scores` paired.
    """
    return sorted(map(str, a["question"])) == sorted(map(str, b["question"]))


def two_sided_p(differences: np.ndarray) -> float:
    """Return the bootstrap p-value of a difference that is zero: twice the smaller tail.

    One is added to both counts (Davison and Hinkley 1997, section 4.2), so that it is never 0.
    Differences that are not finite drop out; 1 if none is left.
    """
    defined = differences[np.isfinite(differences)]
    tail = min((defined <= 0).sum(), (defined >= 0).sum())
    return min(1.0, 2 * (int(tail) + 1) / (len(defined) + 1))


def holm(p_values: Sequence[float]) -> list[float]:
    """Return p-values adjusted for how many there are (Holm 1979), in the order given."""
    order = np.argsort(p_values, kind="stable")
    steps = [min(1.0, (len(order) - rank) * p_values[i]) for rank, i in enumerate(order)]
    adjusted = np.empty(len(order))
    adjusted[order] = np.maximum.accumulate(steps) if steps else []
    return [float(p) for p in adjusted]
