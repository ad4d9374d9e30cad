"""What must hold of TTFT results whatever the hardware; if it does not, a measurement is wrong."""

from collections.abc import Mapping, Sequence
from itertools import combinations
from typing import Any

import numpy as np

from interlace.evaluation.ttft.outcome import RESAMPLES

EQUAL_DEPTH = 0.03
"""How far beyond its interval the ratio of two variants of equal depth may lie from 1."""
DECODER = 0.10
"""How far, relatively, the decoder's speed-up may lie from the ratio of the depths, beyond its
interval: norms and head do not shrink with the layers."""
SUM = 0.01
"""How far the stages may add up to something else than the total, relatively."""

_NEEDED = ("model", "variant", "benchmark", "kernels", "dense", "pruned", "split")
_TIMES = ("dense_s", "pruned_s", "dense_decoder_s", "pruned_decoder_s")


def needed(result: Mapping[str, Any]) -> dict[str, Any]:
    """Return the part of a result that `check_sanity` reads: little, where samples are many."""
    samples = [{key: sample[key] for key in ("index", *_TIMES)} for sample in result["samples"]]
    return {key: result[key] for key in _NEEDED} | {"samples": samples}


def check_sanity(results: Sequence[Mapping[str, Any]], seed: int = 0) -> list[str]:
    """Return what is wrong with the results (bodies of TTFT files); nothing if all is well.

    Over all benchmarks of a model together: two variants of equal depth on the same kernels agree;
    the decoder's time shrinks as its depth does, on dense kernels; of every result the stages add up
    to the total. Intervals are of 95 %, samples drawn in pairs.
    """
    problems = [problem for result in results for problem in _sums(result)]
    variants: dict[tuple[str, str], list[Mapping[str, Any]]] = {}
    for result in results:
        variants.setdefault((result["model"], result["variant"]), []).append(result)
    problems += [p for key, found in variants.items() for p in _decoder(key, found, seed)]
    for (a, found), (b, others) in combinations(variants.items(), 2):
        if a[0] == b[0] and _depth(found) == _depth(others) and _kernels(found) == _kernels(others):
            problems += _equal_depth((*a, found), (b[1], others), seed)
    return problems


def _sums(result: Mapping[str, Any]) -> list[str]:
    problems = []
    for side in ("dense", "pruned"):
        total, stages = result[side]["mean_s"], result["split"][side]
        found = sum(stages.values())
        if abs(found - total) > SUM * total:
            problems.append(
                f"{result['model']} {result['variant']} {result['benchmark']}: the stages of {side} "
                f"add up to {found:.6f} s, the first token took {total:.6f} s"
            )
    return problems


def _decoder(key: tuple[str, str], found: Sequence[Mapping[str, Any]], seed: int) -> list[str]:
    if _kernels(found) != "dense":
        return []
    dense, pruned = (_times(found, f"{side}_decoder_s") for side in ("dense", "pruned"))
    expected = found[0]["dense"]["num_layers"] / _depth(found)
    low, high = _interval(dense, pruned, seed)
    if low <= expected * (1 + DECODER) and high >= expected * (1 - DECODER):
        return []
    return [
        f"{' '.join(key)}: the decoder is {dense.mean() / pruned.mean():.3f}x as fast (95 % interval "
        f"{low:.3f} to {high:.3f}), its depth says {expected:.3f}x"
    ]


def _equal_depth(
    first: tuple[str, str, Sequence[Mapping[str, Any]]],
    second: tuple[str, Sequence[Mapping[str, Any]]],
    seed: int,
) -> list[str]:
    model, a, found = first
    b, others = second
    shared = {(r["benchmark"], s["index"]) for r in found for s in r["samples"]}
    shared &= {(r["benchmark"], s["index"]) for r in others for s in r["samples"]}
    if not shared:
        return []
    # Each against its own dense: they may have been timed hours apart.
    times = [_times(f, f"{s}_s", shared) for f in (found, others) for s in ("dense", "pruned")]
    low, high = _interval(times[0], times[1], seed, times[2], times[3])
    if low <= 1 + EQUAL_DEPTH and high >= 1 - EQUAL_DEPTH:
        return []
    return [
        f"{model}: {a} and {b} have {_depth(found)} layers each, and the speed-ups' ratio has a 95 % "
        f"interval of {low:.3f} to {high:.3f}"
    ]


def _times(
    found: Sequence[Mapping[str, Any]], key: str, shared: set[Any] | None = None
) -> np.ndarray:
    rows = {
        (result["benchmark"], sample["index"]): sample[key]
        for result in found
        for sample in result["samples"]
    }
    return np.array([rows[name] for name in sorted(rows) if shared is None or name in shared])


def _interval(
    dense: np.ndarray,
    pruned: np.ndarray,
    seed: int,
    other_dense: np.ndarray | None = None,
    other_pruned: np.ndarray | None = None,
) -> tuple[float, float]:
    """Return the interval of a speed-up, or of the ratio of two speed-ups on the same samples."""
    rng = np.random.default_rng(seed)
    ratios = []
    for _ in range(RESAMPLES):
        drawn = rng.integers(len(dense), size=len(dense))
        ratio = dense[drawn].mean() / pruned[drawn].mean()
        if other_dense is not None and other_pruned is not None:
            ratio /= other_dense[drawn].mean() / other_pruned[drawn].mean()
        ratios.append(ratio)
    low, high = np.percentile(ratios, [2.5, 97.5])
    return float(low), float(high)


def _depth(found: Sequence[Mapping[str, Any]]) -> int:
    return found[0]["pruned"]["num_layers"]


def _kernels(found: Sequence[Mapping[str, Any]]) -> str:
    return found[0].get("kernels", "dense")
