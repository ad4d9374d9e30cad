"""Bootstrap resamples of scores, from the outcomes of single samples beside each result."""

import math
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

import numpy
import pandas

from interlace.errors import InputError
from interlace.evaluation.intervals import by_question, resampled_scores
from interlace.evaluation.outcomes import read_outcomes_file
from interlace.io import digest
from interlace.reporting.results import Score


@dataclass(frozen=True)
class Resampled:
    """A score over resampled questions (`scores`, 0-100, NaN where undefined).

    `rows` are the outcomes of each seed, with `index`, `question`, `value` and `weight`; the scores
    are the mean over seeds. `questions` is a digest of every row's question, `num_questions` how many
    there are. `seed`: of the draws.
    """

    scores: numpy.ndarray
    questions: str
    num_questions: int
    rows: tuple[pandas.DataFrame, ...] = field(repr=False)
    benchmark: str
    seed: int

    @property
    def values(self) -> list[float]:
        """The score of each seed."""
        return [_score(rows) for rows in self.rows]

    @property
    def keys(self) -> pandas.MultiIndex:
        """What every seed was asked: the index and the question of each row."""
        keys = [pandas.MultiIndex.from_frame(rows[["index", "question"]]) for rows in self.rows]
        shared = keys[0]
        for other in keys[1:]:
            shared = shared.intersection(other)
        return shared

    @cached_property
    def sums(self) -> pandas.DataFrame:
        """`value` and `weight` by question, the mean over seeds."""
        parts = [by_question(rows) for rows in self.rows]
        return sum(parts[1:], parts[0]) / len(parts)

    def restricted(self, keys: pandas.MultiIndex) -> "Resampled":
        """Return the score over the rows with these `keys` alone."""
        parts = []
        for rows in self.rows:
            part = rows[pandas.MultiIndex.from_frame(rows[["index", "question"]]).isin(keys)]
            if self.benchmark.startswith("HRBench"):
                # Weights are by the sizes of the rotations' groups, which are other ones now.
                part = part.assign(value=part["value"] / part["weight"], weight=1.0)
            parts.append(_resampled(part, self.seed, self.benchmark))
        return _mean(parts)


@dataclass
class Resampler:
    """Resamples with one seed, so that the same questions are drawn for whatever is compared.

    Results are kept by file: a table asks for Dense many times.
    """

    seed: int
    known: dict[Path, Resampled] = field(default_factory=dict)

    def of_score(self, score: Score, benchmark: str) -> Resampled | None:
        """Return a score's resamples, the mean over its seeds; None where outcomes are missing.

        InputError if the outcomes do not add up to the score, or differ in questions between seeds.
        """
        if not score.outcomes:
            return None
        values = score.by_seed.values() if score.by_seed else (score.value,)
        parts = [
            self._of_file(path, benchmark, value)
            for path, value in zip(score.outcomes, values, strict=True)
        ]
        for path, part in zip(score.outcomes[1:], parts[1:], strict=True):
            if part.questions != parts[0].questions:
                raise unlike_questions(score.outcomes[0], path)
        return _mean(parts)

    def _of_file(self, path: Path, benchmark: str, value: float) -> Resampled:
        if path not in self.known:
            outcomes = read_outcomes_file(path, ("index", "question", "value", "weight"))
            again = _score(outcomes)
            if not math.isclose(again, value, abs_tol=1e-6):
                raise InputError(
                    f"{path}: its outcomes give {again:.6g} and {path.stem}.json says {value:.6g}; "
                    "delete both and evaluate again"
                )
            self.known[path] = _resampled(outcomes, self.seed, benchmark)
        return self.known[path]


def _resampled(rows: pandas.DataFrame, seed: int, benchmark: str) -> Resampled:
    questions = sorted(map(str, rows["question"]))
    scores = resampled_scores(rows, seed, benchmark)
    return Resampled(scores, digest(questions), len(set(questions)), (rows,), benchmark, seed)


def _mean(parts: list[Resampled]) -> Resampled:
    """Return one score for those of several seeds, which were asked the same."""
    if len(parts) == 1:
        return parts[0]
    first = parts[0]
    return Resampled(
        numpy.mean([part.scores for part in parts], axis=0),
        first.questions,
        first.num_questions,
        tuple(part.rows[0] for part in parts),
        first.benchmark,
        first.seed,
    )


def _score(rows: pandas.DataFrame) -> float:
    weight = rows["weight"].sum()
    return 100 * float(rows["value"].sum() / weight) if weight else 0.0


def unlike_questions(path: Path, other: Path, why: str = "") -> InputError:
    """Return the error of two results that are compared and were not asked the same questions."""
    return InputError(
        f"{path} and {other}: not the same questions{f' ({why})' if why else ''}, so they cannot be "
        "compared; evaluate both again from the same TSV and with the same evaluation.limit"
    )
