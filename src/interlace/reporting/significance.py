"""Whether methods differ: paired differences and permutation tests for Tables 2, 3 and 5.

The difference of a pair is that of the numbers which its table shows: of the average scores (Tables 2
and 5), or of the mean ratio to the main method (Table 3, where the main method is 100 by definition).
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from interlace.errors import InputError
from interlace.evaluation.intervals import DEFINED, FEWEST_QUESTIONS, holm, permutation_p
from interlace.reporting import averages
from interlace.reporting.alike import check_alike
from interlace.reporting.averages import Average
from interlace.reporting.estimates import Estimate, Estimates, Rule, combine, permute
from interlace.reporting.labels import Variant, model_label
from interlace.reporting.paper import OVERALL, Paper
from interlace.reporting.resamples import Resampler
from interlace.reporting.results import Results
from interlace.reporting.seeds import over_seeds
from interlace.reporting.sources import DENSE, DENSE_FT, Sources

TABLES = (2, 3, 5)
MODES = {2: "limited", 3: "cot", 5: "cot"}
LEVEL = 0.05
"""Two-sided level of the verdicts, on Holm-adjusted p-values."""
BETTER, WORSE, ALIKE, UNKNOWN = "better", "worse", "not distinguishable", "no outcomes"
TOO_FEW, UNDEFINED = "too few questions", "not defined"


@dataclass(frozen=True)
class Comparison:
    """A method against another in one table, over all benchmarks (`Overall`) or a category.

    `difference` is the method's number minus the other's, in points of the table's scale; `low`,
    `high` its paired 95 % interval, `p` its two-sided permutation p-value and `adjusted` Holm's over
    the `family`'s comparisons: those of one table and one scope. They are None where a result has no
    outcomes, a benchmark has fewer than `FEWEST_QUESTIONS` questions, or the difference is not
    `defined` (the share of resamples, 0-1) often enough. `fewest`: questions of the benchmark that
    has the fewest. `coverage`: (n, m) where both have n of the scope's m benchmarks and n < m. `seeds`:
    how many seeds each is a mean of.
    """

    table: int
    scope: str
    method: str
    against: str
    difference: float
    low: float | None
    high: float | None
    p: float | None
    num_questions: int | None
    partial: bool
    num_benchmarks: int
    coverage: tuple[int, int] | None
    seeds: tuple[int, int]
    fewest: int = 0
    defined: float | None = None
    adjusted: float | None = None
    family: int = 0

    @property
    def verdict(self) -> str:
        """Better, worse or not distinguishable at `LEVEL`; what is missing where nothing is known."""
        if self.num_questions is None:
            return UNKNOWN
        if self.fewest < FEWEST_QUESTIONS:
            return TOO_FEW
        if self.adjusted is None:
            return UNDEFINED
        if self.adjusted >= LEVEL:
            return ALIKE
        return BETTER if self.difference > 0 else WORSE


def compare(
    tables: Sequence[int],
    results: Results,
    paper: Paper,
    models: Mapping[str, Mapping[str, Any]],
    experiments: Mapping[str, Any],
    seed: int = 0,
) -> list[Comparison]:
    """Return every comparison of `tables`, each pair once: by table, scope, then as the table stands.

    Methods are compared with the main method, then with Dense and Dense-FT where the table has them.
    InputError for a table without methods to compare, and for two results that were not asked the
    same questions or not made in the same way.
    """
    for number in tables:
        if number not in TABLES:
            raise InputError(f"table {number}: significance is for tables 2, 3 and 5")
    for model in sorted(results.models):
        model_label(model, models)
    check_alike(results)
    sources = Sources(over_seeds(results), paper, models, experiments, Resampler(seed))
    scopes = {OVERALL: paper.names, **paper.categories}
    found = []
    for number in tables:
        for scope, names in scopes.items():
            found += _family(list(_comparisons(sources, number, scope, names)))
    return found


def _comparisons(
    sources: Sources, number: int, scope: str, names: Sequence[str]
) -> Iterator[Comparison]:
    rule = _ratio_difference(names) if number == 3 else _difference(names)
    scores = {v: sources.scores(v, MODES[number]) for v in _methods(sources, number)}
    for method, other in _pairs(sources, number, [v for v, found in scores.items() if found]):
        # Nothing is relative to 0: such a benchmark has no part in a mean of ratios.
        theirs = {n: e for n, e in scores[other].items() if number != 3 or e.value}
        estimate, mean = combine(rule, names, scores[method], theirs, strict=True)
        if estimate is not None:
            comparison = _comparison(estimate, mean, (scores[method], theirs))
            if comparison.low is not None:
                seed = sources.resampler.seed
                swaps = permute(rule, names, scores[method], theirs, seed)
                comparison = replace(comparison, p=permutation_p(swaps))
            yield replace(
                comparison, table=number, scope=scope, method=method.label, against=other.label
            )


def _methods(sources: Sources, number: int) -> list[Variant]:
    if number == 2:
        return sources.comparison()
    others = [DENSE] if number == 5 else []
    return [*sources.ablations(), sources.reference, *others]


def _pairs(
    sources: Sources, number: int, methods: Sequence[Variant]
) -> Iterator[tuple[Variant, Variant]]:
    """Yield (method, what it is compared with); never a pair the other way round as well."""
    against = [sources.reference] if number == 3 else [sources.reference, DENSE, DENSE_FT]
    done: list[Variant] = []
    for other in against:
        if other not in methods:
            continue
        done.append(other)
        for method in methods:
            if method not in done:
                yield method, other


def _difference(names: Sequence[str]) -> Rule:
    """Return the difference of the mean scores, over the benchmarks that both have."""

    def rule(values: Any, reference: Any) -> Average:
        mean = averages.average(values, names)
        if mean.value is None:
            return mean
        return replace(mean, value=mean.value - averages.average(reference, names).value)

    return rule


def _ratio_difference(names: Sequence[str]) -> Rule:
    """Return how far the mean ratio to the reference (percent) is from 100."""

    def rule(values: Any, reference: Any) -> Average:
        mean = averages.mean_of_ratios(values, reference, names)
        return mean if mean.value is None else replace(mean, value=mean.value - 100)

    return rule


def _comparison(
    estimate: Estimate, mean: Average, sides: tuple[Estimates, Estimates]
) -> Comparison:
    known = estimate.samples is not None
    enough = known and estimate.defined >= DEFINED and estimate.fewest >= FEWEST_QUESTIONS
    low, high = estimate.interval if enough else (None, None)
    return Comparison(
        table=0,
        scope="",
        method="",
        against="",
        difference=estimate.value,
        low=low,
        high=high,
        p=None,
        num_questions=estimate.num_questions if known else None,
        partial=estimate.partial,
        num_benchmarks=mean.count,
        coverage=None if mean.complete else (mean.count, mean.total),
        seeds=tuple(max(len(e.by_seed) or 1 for e in side.values()) for side in sides),
        fewest=estimate.fewest,
        defined=estimate.defined,
    )


def _family(comparisons: list[Comparison]) -> list[Comparison]:
    """Return the comparisons of a table and scope with p-values adjusted for their number."""
    tested = [c for c in comparisons if c.p is not None]
    adjusted = dict(zip(map(id, tested), holm([c.p for c in tested]), strict=True))
    return [replace(c, adjusted=adjusted.get(id(c)), family=len(tested)) for c in comparisons]
