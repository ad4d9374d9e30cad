"""From the times of samples to what a result says about a variant beside dense."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from interlace.evaluation.ttft.ratios import STAGES, draws, interval
from interlace.evaluation.ttft.roofline import Peaks, Work, bounds
from interlace.evaluation.ttft.turns import Measured


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
    work: Mapping[str, Sequence[Mapping[str, Work]] | None],
    peaks: Peaks,
    seed: int,
) -> dict[str, Any]:
    """Return a result's numbers for `variant` beside `dense` on the same samples.

    `sides` and `work` are by model; `work` holds each sample's, as `roofline.work_of` gives it.
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
    speedup = ratio(seconds["dense"], seconds["pruned"], seed)
    preprocessing = np.array([sample.preprocessing for sample in samples])
    least = _roofline(names, work, peaks)
    body = {
        "num_samples": len(samples),
        **{side: _side(seconds[side], passes[side], sides[name]) for side, name in names.items()},
        "speedup": speedup["ratio"],
        "speedup_interval": speedup["interval"],
        "speedup_of_medians": ratio(seconds["dense"], seconds["pruned"], seed, np.median),
        "decoder_speedup": ratio(stages["dense"]["decoder"], stages["pruned"]["decoder"], seed),
        "split": {
            side: {f"{stage}_s": float(times.mean()) for stage, times in found.items()}
            for side, found in stages.items()
        },
        "preprocessing": statistics(preprocessing),
        "end_to_end": {side: statistics(times, whole_passes[side]) for side, times in whole.items()}
        | ratio(whole["dense"], whole["pruned"], seed),
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
    every: Mapping[str, Sequence[Mapping[str, Work]] | None],
    peaks: Peaks,
) -> dict[str, Any]:
    """Return the `summary` of a result's roofline and each side's least seconds per sample."""
    work = {name: found for name in names.values() if (found := every.get(name)) is not None}
    if len(work) < len(set(names.values())):
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


def ratio(
    dense: np.ndarray, pruned: np.ndarray, seed: int, of: Callable[..., Any] = np.mean
) -> dict[str, Any]:
    """Return {ratio, interval} of the means, or what else `of` gives, dense over pruned, pairs drawn.

    The interval is None where there is a single sample, or all draws give the same.
    """
    rng = np.random.default_rng(seed)
    drawn = [of(a, axis=1) / of(b, axis=1) for a, b in draws(dense, pruned, rng)]
    ends = interval(np.concatenate(drawn))
    return {
        "ratio": float(of(dense) / of(pruned)),
        "interval": None if ends is None else list(ends),
    }
