"""A variant's seeds taken together: the mean of its scores, and how far they spread."""

import statistics
from collections import Counter
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

    A variant's benchmarks are averaged over the same seeds: those that all of its benchmarks have;
    where there is none such, the one that the most have. What is left out, and variants without the
    run's own seed, are told in `remarks`. Timings stay as they are: a seed changes no shape, and TTFT
    is measured for the run's own only.
    """
    groups: dict[tuple[str, str, str], dict[str, dict[int | None, Score]]] = {}
    for (model, name, mode), scores in results.scores.items():
        variant = parse_variant(name)
        key = (model, replace(variant, seed=None).id if variant.seed is not None else name, mode)
        for benchmark, score in scores.items():
            groups.setdefault(key, {}).setdefault(benchmark, {})[variant.seed] = score
    merged, left_out, without_own = {}, [], []
    for key, found in groups.items():
        seeds = _seeds(found)
        kept = {
            benchmark: {seed: score for seed, score in scores.items() if seed in seeds}
            for benchmark, scores in found.items()
        }
        merged[key] = {name: _mean(scores) for name, scores in kept.items() if scores}
        fewer = sum(map(len, found.values())) - sum(map(len, kept.values()))
        if fewer:
            left_out.append(f"{'/'.join(key)} {fewer}")
        if None not in seeds:
            without_own.append("/".join(key))
    remarks = list(results.remarks)
    if left_out:
        remarks.append(
            "Scores left out, of seeds that not all benchmarks of the variant have: "
            f"{', '.join(left_out)}."
        )
    if without_own:
        remarks.append(f"The run's own seed is missing: {', '.join(without_own)}.")
    return Results(merged, results.timings, remarks)


def _seeds(found: Mapping[str, Mapping[int | None, Score]]) -> set[int | None]:
    """Return the seeds that a variant is averaged over, from benchmark -> seed -> score."""
    counts = Counter(chain.from_iterable(found.values()))
    complete = {seed for seed, count in counts.items() if count == len(found)}
    # Of as many, the run's own, which is None, then the smallest.
    return complete or {min(counts, key=lambda s: (-counts[s], s is not None, s or 0))}


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
