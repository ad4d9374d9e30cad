"""Bootstrap intervals of scores, paired by construction, and tests of their differences.

A variant's score is resampled by drawing as many questions as the benchmark has, with replacement
(Efron and Tibshirani 1993, chapters 6 and 13). Which questions are drawn depends on the seed, the
benchmark's name and the set of its questions alone. Two variants that answered the same questions
are therefore resampled alike: their resamples can be subtracted or divided position by position.

p-values come from a permutation test instead, which holds its level however few questions there are
or differ. In 2000 simulated comparisons of two methods that answer at random, at a level of 5 %, it
called 0.2, 1.2, 2.0 and 3.9 % different with 6, 10, 30 and 100 questions; twice the smaller tail of
the bootstrap 9.6, 6.9, 4.6 and 4.2 %. Intervals need more questions: see `FEWEST_QUESTIONS`.
"""

from collections.abc import Sequence

import numpy as np
import pandas as pd

from interlace.io import digest

RESAMPLES = 2000
DEFINED = 0.95
"""The least share of resamples that have a value; below it the others' percentiles are no interval."""
FEWEST_QUESTIONS = 10
"""Of each benchmark in a comparison of methods. Resamples of n questions vary by sqrt((n - 1) / n) too
little: of one question not at all. The mean difference of 12 benchmarks with 2, 5, 10, 20 and 50
questions each lay within its interval in 85, 92, 94, 95 and 96 % of 1000 simulations."""
_DRAWS_AT_ONCE = 2**21  # bounds the memory: 16 MB a table
_LAST_BIT = 1e-9  # of a score: sums in another order differ by less
_NO_WEIGHT = 1e-12


def resampled_scores(outcomes: pd.DataFrame, seed: int, benchmark: str) -> np.ndarray:
    """Return the score (0-100) of each resample, shape (RESAMPLES,); NaN where it is undefined.

    `outcomes` has the columns `question`, `value` and `weight`; rows of one question are drawn
    together, and their order does not matter. Undefined is a resample without any weight: of POPE,
    one in which nothing is yes, said or true.
    """
    sums = by_question(outcomes)
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


def by_question(outcomes: pd.DataFrame) -> pd.DataFrame:
    """Return the sums of `value` and `weight` by question, in the order of the questions' names."""
    # Sorted within a question too: the last bit of a sum depends on the order.
    rows = outcomes[["question", "value", "weight"]].sort_values(["question", "value", "weight"])
    return rows.groupby("question", sort=True)[["value", "weight"]].sum()


def swapped_scores(
    a: pd.DataFrame, b: pd.DataFrame, seed: int, benchmark: str
) -> tuple[np.ndarray, np.ndarray]:
    """Return two variants' scores (0-100) after swaps, each of shape (RESAMPLES + 1,).

    `a`, `b`: sums `by_question` of the same questions. In every swap each question's outcomes change
    sides with probability 1/2, which alters nothing where the variants answer alike (paired
    permutation test: Good 2005, section 3.7; of right and wrong answers, McNemar's). The first
    scores are those without a swap. 0 where there is no weight, as VLMEvalKit's F1.
    """
    assert a.index.equals(b.index), "not the same questions"
    ours, theirs = a[["value", "weight"]].to_numpy(float), b[["value", "weight"]].to_numpy(float)
    change = (theirs - ours)[(theirs != ours).any(axis=1)]
    rng = np.random.default_rng(int(digest([seed, benchmark, "swaps"]), 16))
    step = max(1, _DRAWS_AT_ONCE // max(1, len(change)))
    shift = np.zeros((RESAMPLES + 1, 2))
    for start in range(1, RESAMPLES + 1, step):
        stop = min(start + step, RESAMPLES + 1)
        shift[start:stop] = rng.integers(2, size=(stop - start, len(change))) @ change
    return _scores(ours.sum(axis=0) + shift), _scores(theirs.sum(axis=0) - shift)


def _scores(totals: np.ndarray) -> np.ndarray:
    value, weight = totals.T
    scores = np.zeros(len(totals))
    np.divide(value, weight, out=scores, where=weight > _NO_WEIGHT)
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


def defined_share(values: np.ndarray) -> float:
    """Return the share (0-1) of resampled values that are finite."""
    return float(np.isfinite(values).mean())


def permutation_p(differences: np.ndarray) -> float:
    """Return the two-sided p-value of a difference, the first of `differences`; the others are swaps'.

    Twice the smaller tail: the share of swaps, the one that changes nothing among them, whose
    difference is as large or larger, or as small or smaller (Davison and Hinkley 1997, section 4.3).
    Never 0. A swap that has no value counts in both tails. A ratio is not as far below 100 as its
    inverse is above: so no absolute values.
    """
    observed = differences[0]
    above = ~(differences < observed - _LAST_BIT)
    below = ~(differences > observed + _LAST_BIT)
    return min(1.0, float(2 * min(above.sum(), below.sum()) / len(differences)))


def holm(p_values: Sequence[float]) -> list[float]:
    """Return p-values adjusted for how many there are (Holm 1979), in the order given."""
    order = np.argsort(p_values, kind="stable")
    steps = [min(1.0, (len(order) - rank) * p_values[i]) for rank, i in enumerate(order)]
    adjusted = np.empty(len(order))
    adjusted[order] = np.maximum.accumulate(steps) if steps else []
    return [float(p) for p in adjusted]
