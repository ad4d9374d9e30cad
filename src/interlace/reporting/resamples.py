"""Bootstrap resamples of scores, from the outcomes of single samples beside each result."""

import math
from dataclasses import dataclass, field
from pathlib import Path

import numpy

from interlace.errors import InputError
from interlace.evaluation.intervals import resampled_scores
from interlace.evaluation.outcomes import read_outcomes_file
from interlace.io import digest
from interlace.reporting.results import Score


@dataclass(frozen=True)
class Resampled:
    """A score over resampled questions (`scores`, 0-100, NaN where undefined).

    `questions` is a digest of every row's question, `num_questions` how many there are.
    """

    scores: numpy.ndarray
    questions: str
    num_questions: int


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
        scores = numpy.mean([part.scores for part in parts], axis=0)
        return Resampled(scores, parts[0].questions, parts[0].num_questions)

    def _of_file(self, path: Path, benchmark: str, value: float) -> Resampled:
        if path not in self.known:
            outcomes = read_outcomes_file(path, ("question", "value", "weight"))
            weight = outcomes["weight"].sum()
            again = 100 * float(outcomes["value"].sum() / weight) if weight else 0.0
            if not math.isclose(again, value, abs_tol=1e-6):
                raise InputError(
                    f"{path}: its outcomes give {again:.6g} and {path.stem}.json says {value:.6g}; "
                    "delete both and evaluate again"
                )
            questions = sorted(map(str, outcomes["question"]))  # as `intervals.same_questions`
            scores = resampled_scores(outcomes, self.seed, benchmark)
            self.known[path] = Resampled(scores, digest(questions), len(set(questions)))
        return self.known[path]


def unlike_questions(path: Path, other: Path) -> InputError:
    """Return the error of two results that are compared and were not asked the same questions."""
    return InputError(
        f"{path} and {other}: not the same questions, so they cannot be compared; "
        "evaluate both again from the same TSV and with the same evaluation.limit"
    )
