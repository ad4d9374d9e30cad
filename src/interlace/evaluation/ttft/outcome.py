"""From the times of samples to what a result says about a variant beside dense."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from interlace.evaluation.ttft.clock import STAGES
from interlace.evaluation.ttft.roofline import Peaks, Work, bounds
from interlace.evaluation.ttft.turns import Measured

RESAMPLES = 2000
ROUNDING = 1e-9  # a narrower interval, relatively, has no width
_BLOCK = 2**22  # drawn values at a time, 32 MB


@dataclass(frozen=True)
class Side:
    """What a result says about one model, besides its times; None where it was not measured."""

    num_layers: int
    weights_disk: int | None = None
    weights_loaded: int | None = None
    peak_memory: int | None = None
    decode_rate: float | None = None


def summarise(
    samples: Sequence[Measured],
    variant: str,
    sides: Mapping[str, Side],
    *,
    work: Mapping[str, Sequence[Mapping[str, Work]]] | None,
    peaks: Peaks | None,
    seed: int,
) -> dict[str, Any]:
    """Return a result's numbers for `variant` beside `dense` on the same samples.

    `sides` and `work` are by model; `work` holds each sample's, as `roofline.prefill_work` gives it.
    Speed-ups are ratios of means (dense over variant) with 95 % bootstrap intervals that draw the
    samples in pairs, from `seed`.
    """
    names = {"dense": "dense", "pruned": variant}
    seconds = {side: np.array([s.seconds[name] for s in samples]) for side, name in names.items()}
    whole = {side: np.array([s.end_to_end[name] for s in samples]) for side, name in names.items()}
    passes = {side: _single(samples, "passes", name) for side, name in names.items()}
    whole_passes = {side: _single(samples, "whole_passes", name) for side, name in names.items()}
    stages = {
        side: {
            stage: np.array([sample.stages[name][stage] for sample in samples]) for stage in STAGES
        }
        for side, name in names.items()
    }
    ratio, median = ratios(seconds["dense"], seconds["pruned"], seed)
    decoder, _ = ratios(stages["dense"]["decoder"], stages["pruned"]["decoder"], seed)
    end_to_end, _ = ratios(whole["dense"], whole["pruned"], seed)
    preprocessing = np.array([sample.preprocessing for sample in samples])
    least = _roofline(names, work, peaks)
    body = {
        "num_samples": len(samples),
        **{side: _side(seconds[side], passes[side], sides[name]) for side, name in names.items()},
        "speedup": ratio["ratio"],
        "speedup_interval": ratio["interval"],
        "speedup_of_medians": median,
        "decoder_speedup": decoder,
        "split": {
            side: {f"{stage}_s": float(times.mean()) for stage, times in found.items()}
            for side, found in stages.items()
        },
        "preprocessing": statistics(preprocessing),
        "end_to_end": {side: statistics(times, whole_passes[side]) for side, times in whole.items()}
        | end_to_end,
        "tokens": {
            kind: {"mean": float(np.mean(counts)), "min": min(counts), "max": max(counts)}
            for kind in ("visual_tokens", "text_tokens")
            for counts in [[getattr(sample, kind) for sample in samples]]
        },
        "roofline": least["summary"],
    }
    return body | {"samples": _rows(samples, names, least)}


def _single(samples: Sequence[Measured], kind: str, name: str) -> np.ndarray | None:
    """Return all single passes of a model; None where they were not kept."""
    kept = [getattr(sample, kind).get(name) for sample in samples]
    return np.concatenate(kept) if all(kept) else None


def _side(seconds: np.ndarray, passes: np.ndarray | None, side: Side) -> dict[str, Any]:
    return {
        **statistics(seconds, passes),
        "num_layers": side.num_layers,
        "decode_tokens_per_s": side.decode_rate,
        "peak_memory_bytes": side.peak_memory,
        "weights_disk_bytes": side.weights_disk,
        "weights_loaded_bytes": side.weights_loaded,
    }


def _roofline(
    names: Mapping[str, str],
    work: Mapping[str, Sequence[Mapping[str, Work]]] | None,
    peaks: Peaks | None,
) -> dict[str, Any]:
    """Return the `summary` of a result's roofline and each side's least seconds per sample."""
    if work is None or peaks is None:
        return {"summary": None}
    least = {side: [bounds(w, peaks) for w in work[name]] for side, name in names.items()}
    totals = {side: [sum(found.values()) for found in each] for side, each in least.items()}
    summary: dict[str, Any] = {
        "flops_per_s": peaks.flops_per_s,
        "bytes_per_s": peaks.bytes_per_s,
        "speedup": float(np.mean(totals["dense"]) / np.mean(totals["pruned"])),
    }
    for side, name in names.items():
        parts = least[side][0]
        summary[side] = {
            "mean_s": float(np.mean(totals[side])),
            **{
                f"{stage}_s": float(np.mean([each[stage] for each in least[side]]))
                for stage in parts
            },
            "flops": float(np.mean([sum(part.flops for part in w.values()) for w in work[name]])),
            "bytes": float(np.mean([sum(part.bytes for part in w.values()) for w in work[name]])),
        }
    return {"summary": summary, "totals": totals}


def _rows(
    samples: Sequence[Measured], names: Mapping[str, str], least: Mapping[str, Any]
) -> list[dict[str, Any]]:
    rows = []
    for number, sample in enumerate(samples):
        row: dict[str, Any] = {
            "index": sample.index,
            "visual_tokens": sample.visual_tokens,
            "text_tokens": sample.text_tokens,
            "images": sample.images,
            "preprocessing_s": sample.preprocessing,
        }
        for side, name in names.items():
            row[f"{side}_s"] = sample.seconds[name]
            row |= {f"{side}_{stage}_s": sample.stages[name][stage] for stage in STAGES}
            row[f"{side}_end_to_end_s"] = sample.end_to_end[name]
            if "totals" in least:
                row[f"{side}_roofline_s"] = least["totals"][side][number]
        rows.append(row)
    return rows


def statistics(seconds: np.ndarray, passes: np.ndarray | None = None) -> dict[str, float]:
    """Return mean and median over samples, and the 95th percentile over all single passes.

    `seconds` are each sample's means over its `passes`, which the percentile would smooth.
    """
    return {
        "mean_s": float(seconds.mean()),
        "median_s": float(np.median(seconds)),
        "p95_s": float(np.percentile(seconds if passes is None else passes, 95)),
    }


def ratios(
    dense: np.ndarray, pruned: np.ndarray, seed: int
) -> tuple[dict[str, Any], dict[str, Any]]:
    """Return {ratio, interval} of the means and of the medians, dense over pruned, pairs drawn.

    An interval is None where there is a single sample, or all draws give the same.
    """
    drawn_means, drawn_medians = [], []
    for a, b in _draws(dense, pruned, np.random.default_rng(seed), RESAMPLES):
        drawn_means.append(a.mean(axis=1) / b.mean(axis=1))
        drawn_medians.append(np.median(a, axis=1) / np.median(b, axis=1))
    means = {
        "ratio": float(dense.mean() / pruned.mean()),
        "interval": _interval(np.concatenate(drawn_means)),
    }
    medians = {
        "ratio": float(np.median(dense) / np.median(pruned)),
        "interval": _interval(np.concatenate(drawn_medians)),
    }
    return means, medians


def speedup_interval(
    dense: np.ndarray, pruned: np.ndarray, rng: np.random.Generator, resamples: int = RESAMPLES
) -> list[float] | None:
    """Return the 95 % bootstrap interval of mean(dense) / mean(pruned), resampling pairs.

    None where there is a single sample, or all draws give the same.
    """
    draws = _draws(dense, pruned, rng, resamples)
    return _interval(np.concatenate([a.mean(axis=1) / b.mean(axis=1) for a, b in draws]))


def _draws(dense: np.ndarray, pruned: np.ndarray, rng: np.random.Generator, resamples: int) -> Any:
    """Yield drawn pairs, (rows, samples) each, in blocks that fit into little memory."""
    rows = max(1, _BLOCK // len(dense))
    for start in range(0, resamples, rows):
        drawn = rng.integers(len(dense), size=(min(rows, resamples - start), len(dense)))
        yield dense[drawn], pruned[drawn]


def _interval(values: np.ndarray) -> list[float] | None:
    low, high = np.percentile(values, [2.5, 97.5])
    return [float(low), float(high)] if high - low > ROUNDING * high else None
