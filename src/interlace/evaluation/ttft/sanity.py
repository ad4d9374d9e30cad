"""What must hold of TTFT results whatever the hardware; if it does not, a measurement is wrong.

Needs no torch, so that the table of TTFT can check what all of a model's jobs measured.
"""

import functools
import math
from collections.abc import Mapping, Sequence
from itertools import combinations
from typing import Any

import numpy as np

SLACK = 0.01
"""How far beyond its interval the ratio of two variants of equal depth may lie from 1."""
DECODER = 1 / 3
"""How far beyond its interval the decoder's speed-up may lie from the ratio of the depths, as a
part of what that ratio gains: norms and head do not shrink with the layers. At least `SLACK`."""
NEGATIVE = 0.01
"""How far the rest, which is a difference, may lie below 0, as a part of the total."""
LEVEL = 0.05

_NEEDED = ("model", "variant", "benchmark", "kernels", "dense", "pruned", "split")
TIMES = ("dense_s", "pruned_s", "dense_decoder_s", "pruned_decoder_s")

Result = Mapping[str, Any]
Ratios = dict[str, np.ndarray]
"""Logarithms of the ratio of two times, of every sample, by benchmark."""


def needed(result: Result) -> dict[str, Any]:
    """Return the part of a result that `check_sanity` reads, its samples by column: little memory."""
    samples = result["samples"]
    if not isinstance(samples, Mapping):
        samples = {key: np.array([s[key] for s in samples]) for key in ("index", *TIMES)}
    return {key: result[key] for key in _NEEDED} | {"samples": samples}


def check_sanity(results: Sequence[Result]) -> list[str]:
    """Return what is wrong with the results (bodies of TTFT files), and what could not be compared.

    Every time is finite and positive, no stage is below 0. By variant, over its benchmarks: the
    decoder's time shrinks as its depth does, on dense kernels. By model: two variants of equal depth on the same kernels have
    the same speed-up, in the mean over the benchmarks and on each of them.

    Ratios are taken sample by sample, in logarithms, since they should be one for all samples; a
    benchmark counts as much as any other. Intervals are Student's, of 95 %; those of single
    benchmarks are of 95 % for all of them together.
    """
    problems, sound = [], []
    for result in map(needed, results):
        found = _times_wrong(result) or _negative(result)
        problems += found
        if not found:
            sound.append(result)
    variants: dict[tuple[str, str], list[Result]] = {}
    for result in sound:
        variants.setdefault((result["model"], result["variant"]), []).append(result)
    problems += [problem for key, found in variants.items() for problem in _decoder(key, found)]
    for (a, found), (b, others) in combinations(variants.items(), 2):
        if a[0] == b[0] and _depth(found) == _depth(others) and _kernels(found) == _kernels(others):
            problems += _equal_depth((*a, found), (b[1], others))
    return problems


def _name(result: Result) -> str:
    return f"{result['model']} {result['variant']} {result['benchmark']}"


def _times_wrong(result: Result) -> list[str]:
    times = [(key, float(value)) for key in TIMES for value in result["samples"][key]]
    times += [(f"{side} mean", result[side]["mean_s"]) for side in ("dense", "pruned")]
    wrong = [(key, value) for key, value in times if not (math.isfinite(value) and value > 0)]
    if not wrong:
        return []
    key, value = wrong[0]
    return [f"{_name(result)}: {key} is {value} s ({len(wrong)} of {len(times)} times like it)"]


def _negative(result: Result) -> list[str]:
    """Return the stages below 0: of the rest, that others were counted twice."""
    return [
        f"{_name(result)}: {stage} of {side} is {seconds:.6f} s of {result[side]['mean_s']:.6f} s"
        for side in ("dense", "pruned")
        for stage, seconds in result["split"][side].items()
        if not seconds >= -NEGATIVE * result[side]["mean_s"]  # NaN too
    ]


def _decoder(key: tuple[str, str], found: Sequence[Result]) -> list[str]:
    if _kernels(found) != "dense":
        return []
    expected = found[0]["dense"]["num_layers"] / _depth(found)
    logs = {
        name: np.log(times["dense_decoder_s"] / times["pruned_decoder_s"])
        for name, times in _times(found).items()
    }
    ratio, low, high = _interval(logs)
    slack = max(SLACK, DECODER * abs(expected - 1))
    if low - slack <= expected <= high + slack:
        return []
    return [
        f"{' '.join(key)}: the decoder is {ratio:.3f}x as fast (95 % interval {low:.3f} to "
        f"{high:.3f}), its depth says {expected:.3f}x"
    ]


def _equal_depth(
    first: tuple[str, str, Sequence[Result]], second: tuple[str, Sequence[Result]]
) -> list[str]:
    model, a, found = first
    b, others = second
    head = f"{model}: {a} and {b} have {_depth(found)} layers each"
    logs = _speedups_apart(_times(found), _times(others))
    if not logs:
        return [f"{head}, but no sample in common: not compared"]
    if _freedom(logs) == 0:
        return [f"{head}, but a single sample of each benchmark in common: not compared"]
    problems = []
    ratio, low, high = _interval(logs)
    if not low - SLACK <= 1 <= high + SLACK:
        problems.append(
            f"{head}, and the ratio of their speed-ups is {ratio:.3f} (95 % interval {low:.3f} to "
            f"{high:.3f})"
        )
    for name, values in logs.items():
        if len(values) > 1 and len(logs) > 1:
            ratio, low, high = _interval({name: values}, LEVEL / len(logs))
            if not low - SLACK <= 1 <= high + SLACK:
                problems.append(
                    f"{head}, and on {name} the ratio of their speed-ups is {ratio:.3f} ({low:.3f} "
                    f"to {high:.3f})"
                )
    return problems


def _times(found: Sequence[Result]) -> dict[str, dict[str, np.ndarray]]:
    """Return the times of `TIMES` and the samples' `index`, by benchmark."""
    return {result["benchmark"]: result["samples"] for result in found}


def _speedups_apart(
    ours: Mapping[str, Mapping[str, np.ndarray]], theirs: Mapping[str, Mapping[str, np.ndarray]]
) -> Ratios:
    """Return the ratios of two variants' speed-ups on the samples that they share.

    Each against its own dense: they may have been timed hours apart.
    """
    logs = {}
    for name in sorted(ours.keys() & theirs.keys()):
        speedups = []
        _, *places = np.intersect1d(ours[name]["index"], theirs[name]["index"], return_indices=True)
        for times, place in zip((ours[name], theirs[name]), places, strict=True):
            speedups.append(np.log(times["dense_s"][place] / times["pruned_s"][place]))
        if len(speedups[0]):
            logs[name] = speedups[0] - speedups[1]
    return logs


def _freedom(logs: Ratios) -> int:
    return sum(len(values) - 1 for values in logs.values())


def _interval(logs: Ratios, level: float = LEVEL) -> tuple[float, float, float]:
    """Return a ratio, the mean over benchmarks, and its interval; without one where all are single."""
    mean = float(np.mean([values.mean() for values in logs.values()]))
    freedom = _freedom(logs)
    if freedom == 0:
        return math.exp(mean), math.exp(mean), math.exp(mean)
    squares = {name: float(((v - v.mean()) ** 2).sum()) for name, v in logs.items()}
    pooled = sum(squares.values()) / freedom  # for a benchmark that has one sample alone
    variances = [
        (squares[name] / (len(v) - 1) if len(v) > 1 else pooled) / len(v)
        for name, v in logs.items()
    ]
    half = _student(freedom, 1 - level / 2) * math.sqrt(sum(variances)) / len(logs)
    # Beyond e^50 the interval is as good as unbounded.
    return math.exp(mean), math.exp(max(mean - half, -50)), math.exp(min(mean + half, 50))


@functools.cache
def _student(freedom: int, quantile: float) -> float:
    """Return a quantile of Student's t, from draws: good to a few percent, which is enough here."""
    draws = np.random.default_rng(0).standard_t(freedom, 200_000)
    return float(np.quantile(draws, quantile))


def _depth(found: Sequence[Result]) -> int:
    return found[0]["pruned"]["num_layers"]


def _kernels(found: Sequence[Result]) -> str:
    return found[0].get("kernels") or "dense"
