"""A variant's seeds taken together: the mean of its scores, and how far they spread."""

import statistics
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from itertools import chain

from interlace.reporting.labels import parse_variant
from interlace.reporting.results import Results, Score


@dataclass(frozen=True)
class Spread:
    """How `count` seeds differ: sample standard deviation (n - 1), lowest and highest."""

    count: int
    deviation: float
    low: float
    high: float


def spread(by_seed: Mapping[int | None, float]) -> Spread | None:
    """Return the spread of two seeds or more; None for fewer."""
    values = list(by_seed.values())
    if len(values) < 2:
        return None
    return Spread(len(values), statistics.stdev(values), min(values), max(values))


def over_seeds(results: Results) -> Results:
    """Return `results` with the scores of `<variant>-s<seed>` averaged into those of `<variant>`.

    Timings stay as they are: a seed changes no shape, and TTFT is measured for the run's own only.
    """
    groups: dict[tuple[str, str, str], dict[str, dict[int | None, Score]]] = {}
    for (model, name, mode), scores in results.scores.items():
        variant = parse_variant(name)
        key = (model, replace(variant, seed=None).id if variant.seed is not None else name, mode)
        for benchmark, score in scores.items():
            groups.setdefault(key, {}).setdefault(benchmark, {})[variant.seed] = score
    merged = {
        key: {benchmark: _mean(scores) for benchmark, scores in found.items()}
        for key, found in groups.items()
    }
    return Results(merged, results.timings)


def _mean(scores: Mapping[int | None, Score]) -> Score:
    """Return one score for a benchmark's seeds; of a single seed its own."""
    parts = list(scores.values())
    first = scores.get(None, parts[0])
    if len(parts) == 1:
        return first
    return replace(
        first,
        value=statistics.fmean(part.value for part in parts),
        low=None,
        high=None,
        partial=any(part.partial for part in parts),
        fixture=any(part.fixture for part in parts),
        ungraded=sum(part.ungraded for part in parts),
        unparsed=_share(part.unparsed for part in parts),
        empty=_share(part.empty for part in parts),
        cut=_share(part.cut for part in parts),
        files=tuple(chain.from_iterable(part.files for part in parts)),
        outcomes=tuple(chain.from_iterable(part.outcomes for part in parts))
        if all(part.outcomes for part in parts)
        else (),
        by_seed={seed: part.value for seed, part in scores.items()},
    )


def _share(shares: Iterable[float | None]) -> float | None:
    known = [share for share in shares if share is not None]
    return statistics.fmean(known) if known else None
