"""Numbers of ours with what chance does to them: resampled questions, and further seeds."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy

from interlace.evaluation.intervals import DEFINED, defined_share, interval, swapped_scores
from interlace.reporting.averages import Average, Number
from interlace.reporting.resamples import Resampled, unlike_questions

Rule = Callable[[Mapping[str, Number], Mapping[str, Number]], Average]
"""A rule of `averages` over benchmark -> number, ours and the reference's."""


@dataclass(frozen=True)
class Estimate:
    """A number, `samples`: the same number over resampled questions, `by_seed`: of each seed.

    `low`, `high` are an interval known otherwise, which `samples` take the place of. `outcomes`,
    `num_samples` (rows) and `file` are those of one benchmark's score; `num_questions` how many there
    are, `fewest` of the benchmark that has the fewest.
    """

    value: float
    samples: numpy.ndarray | None = None
    by_seed: Mapping[int | None, float] = field(default_factory=dict)
    low: float | None = None
    high: float | None = None
    partial: bool = False
    outcomes: Resampled | None = field(default=None, repr=False)
    num_samples: int | None = None
    num_questions: int = 0
    fewest: int = 0
    file: Path | None = None

    @property
    def interval(self) -> tuple[float | None, float | None]:
        """The 95 % interval, (None, None) where there is none, or too few resamples have a value."""
        if not self.defined:
            return self.low, self.high
        if self.defined < DEFINED:
            return None, None
        low, high = interval(self.samples)
        return low, high

    @property
    def defined(self) -> float | None:
        """Share (0-1) of resamples that have a value (a reference may score 0); None without any."""
        return None if self.samples is None else defined_share(self.samples)


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

    Ours and the reference's are always over the same questions. InputError names two files that were
    not asked the same; if one of them is partial, a benchmark counts by the questions that both
    have, or not at all where these are not known (unless `strict`).
    """
    values = {name: values[name] for name in names if name in values}
    theirs: dict[str, Estimate] = {}
    if reference is not None:
        pairs = {n: _paired(v, reference[n], strict) for n, v in values.items() if n in reference}
        values = {name: pair[0] for name, pair in pairs.items() if pair}
        theirs = {name: pair[1] for name, pair in pairs.items() if pair}
    mean = rule(_numbers(values), _numbers(theirs))
    if mean.value is None:
        return None, mean
    parts = [*values.values(), *theirs.values()]
    samples = None
    if all(part.samples is not None for part in parts):
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
        fewest=min(value.fewest for value in values.values()),
    )
    return estimate, mean


def permute(
    rule: Rule, names: Sequence[str], values: Estimates, reference: Estimates, seed: int
) -> numpy.ndarray | None:
    """Return what `rule` makes of `intervals.swapped_scores`, shape (RESAMPLES + 1,).

    Over the benchmarks that both have, with the same questions; None where outcomes are missing.
    Several seeds of a variant are one: the mean of their outcomes.
    """
    ours, theirs = {}, {}
    for name in names:
        if name in values and name in reference:
            sides = values[name].outcomes, reference[name].outcomes
            if sides[0] is None or sides[1] is None:
                return None
            ours[name], theirs[name] = swapped_scores(sides[0].sums, sides[1].sums, seed, name)
    return rule(ours, theirs).value


def _numbers(values: Estimates) -> dict[str, float]:
    return {name: value.value for name, value in values.items()}


def _first(values: Estimates) -> Estimate:
    return next(iter(values.values()))


def _all_have(seed: int | None, values: Estimates) -> bool:
    return all(seed in value.by_seed for value in values.values())


def _paired(value: Estimate, reference: Estimate, strict: bool) -> tuple[Estimate, Estimate] | None:
    """Return two scores of a benchmark over the same questions, None where that cannot be."""
    ours, theirs = value.outcomes, reference.outcomes
    if ours is None or theirs is None:
        rows = {value.num_samples, reference.num_samples} - {None}
        return (value, reference) if value.partial == reference.partial and len(rows) < 2 else None
    if ours.questions == theirs.questions:
        return value, reference
    if strict or not (value.partial or reference.partial):
        raise unlike_questions(value.file, reference.file)
    keys = ours.keys.intersection(theirs.keys)
    if not len(keys):
        return None
    return _restricted(value, ours.restricted(keys)), _restricted(
        reference, theirs.restricted(keys)
    )


def _restricted(estimate: Estimate, outcomes: Resampled) -> Estimate:
    """Return an estimate over part of its questions."""
    return replace(
        estimate,
        value=float(numpy.mean(outcomes.values)),
        samples=outcomes.scores,
        by_seed=dict(zip(estimate.by_seed, outcomes.values, strict=bool(estimate.by_seed))),
        partial=True,
        outcomes=outcomes,
        num_questions=outcomes.num_questions,
        fewest=outcomes.num_questions,
    )
