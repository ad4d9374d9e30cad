"""Numbers of ours with what chance does to them: resampled questions, and further seeds."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy

from interlace.evaluation.intervals import interval
from interlace.reporting.averages import Average, Number
from interlace.reporting.resamples import unlike_questions

Rule = Callable[[Mapping[str, Number], Mapping[str, Number]], Average]
"""A rule of `averages` over benchmark -> number, ours and the reference's."""


@dataclass(frozen=True)
class Estimate:
    """A number, `samples`: the same number over resampled questions, `by_seed`: of each seed.

    `low`, `high` are an interval known otherwise, which `samples` take the place of. `questions`
    (a digest), `num_questions` and `file` are those of one benchmark's score.
    """

    value: float
    samples: numpy.ndarray | None = None
    by_seed: Mapping[int | None, float] = field(default_factory=dict)
    low: float | None = None
    high: float | None = None
    partial: bool = False
    questions: str | None = None
    num_questions: int = 0
    file: Path | None = None

    @property
    def interval(self) -> tuple[float | None, float | None]:
        """The 95 % interval, (None, None) where there is none."""
        if self.samples is None or not numpy.isfinite(self.samples).any():
            return self.low, self.high
        low, high = interval(self.samples)
        return low, high


Estimates = Mapping[str, Estimate]


def combine(
    rule: Rule,
    names: Sequence[str],
    values: Estimates,
    reference: Estimates | None = None,
    *,
    strict: bool = False,
) -> tuple[Estimate | None, Average]:
    """Return what `rule` makes of benchmarks, as an estimate and with the benchmarks it covers.

    The rule is applied to the scores, to every resample (the benchmarks' are independent of each
    other, those of `values` and `reference` of the same questions) and to every seed that all of
    `values` have, the reference standing at its mean. None where there is no benchmark.

    InputError names two files that were not asked the same questions; if one of them is partial,
    there are no resamples instead (unless `strict`).
    """
    values = {name: values[name] for name in names if name in values}
    if reference is not None:
        values = {name: value for name, value in values.items() if name in reference}
    theirs = {name: reference[name] for name in values} if reference is not None else {}
    mean = rule(_numbers(values), _numbers(theirs))
    if mean.value is None:
        return None, mean
    parts = [*values.values(), *theirs.values()]
    alike = [_alike(values[name], theirs[name], strict) for name in theirs]
    samples = None
    if all(alike) and all(part.samples is not None for part in parts):
        samples = rule(
            {name: value.samples for name, value in values.items()},
            {name: value.samples for name, value in theirs.items()},
        ).value
    seeds = [seed for seed in _first(values).by_seed if _all_have(seed, values)]
    by_seed = {
        seed: rule({n: v.by_seed[seed] for n, v in values.items()}, _numbers(theirs)).value
        for seed in seeds
    }
    estimate = Estimate(
        mean.value,
        samples,
        by_seed,
        partial=any(part.partial for part in parts),
        num_questions=sum(value.num_questions for value in values.values()),
    )
    return estimate, mean


def _numbers(values: Estimates) -> dict[str, float]:
    return {name: value.value for name, value in values.items()}


def _first(values: Estimates) -> Estimate:
    return next(iter(values.values()))


def _all_have(seed: int | None, values: Estimates) -> bool:
    return all(seed in value.by_seed for value in values.values())


def _alike(value: Estimate, reference: Estimate, strict: bool) -> bool:
    """Whether two scores of a benchmark are over the same questions, as far as is known."""
    if value.questions is None or reference.questions is None:
        return True
    if value.questions == reference.questions:
        return True
    if not strict and (value.partial or reference.partial):
        return False
    raise unlike_questions(value.file, reference.file)
