"""TTFT results, read from their files."""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from interlace.errors import InputError

STAGES = ("vision", "projector", "decoder", "first_sampling", "rest")
"""Of a first token, in their order, as `interlace.evaluation.ttft` tells them apart."""
SIDES = ("dense", "pruned")
RESAMPLES = 2000
_BLOCK = 2**20  # drawn values at a time


@dataclass(frozen=True)
class Timing:
    """Time to first token of a variant beside dense on one benchmark; times in seconds.

    `dense` and `pruned` map `total`, each of `STAGES` and `end_to_end` to mean seconds (None if not
    measured); `preprocessing` is the same for both. `facts` map what else was measured of a side
    to its number, under the names of the file (`decode_tokens_per_s`, `peak_memory_bytes`,
    `weights_disk_bytes`, `num_layers`). `decoder` is the speed-up of the decoder alone, `possible`
    the roofline's of the whole. `kernels` are those of the variant's decoder, dense or
    semi_structured, and `kernels_reason` why. `samples` are those of the file.
    """

    speedup: float
    low: float | None = None
    high: float | None = None
    num_samples: int | None = None
    fixture: bool = False
    device: str | None = None
    kernels: str | None = None
    kernels_reason: str | None = None
    dense: dict[str, float | None] = field(default_factory=dict)
    pruned: dict[str, float | None] = field(default_factory=dict)
    preprocessing: float | None = None
    facts: dict[str, dict[str, float | None]] = field(default_factory=dict)
    decoder: float | None = None
    possible: float | None = None
    end_to_end: float | None = None
    memory_kind: str | None = None
    samples: tuple[dict[str, Any], ...] = field(default=(), repr=False)


FACTS = ("num_layers", "decode_tokens_per_s", "peak_memory_bytes", "weights_disk_bytes")


def read_timing(body: dict[str, Any], file: Path) -> Timing:
    """Return what a TTFT file holds; what an older or a smaller one lacks is None.

    InputError names the file if it has no speed-up or no mean of both sides.
    """
    low, high = body.get("speedup_interval") or (None, None)
    whole = body.get("end_to_end") or {}
    times, facts = {}, {}
    for side in SIDES:
        found = get_key(body, side, file)
        split = (body.get("split") or {}).get(side) or {}
        times[side] = {
            "total": get_key(found, "mean_s", file),
            **{stage: split.get(f"{stage}_s") for stage in STAGES},
            "end_to_end": (whole.get(side) or {}).get("mean_s"),
        }
        facts[side] = {fact: found.get(fact) for fact in FACTS}
    return Timing(
        speedup=get_number(body, "speedup", file),
        low=low,
        high=high,
        num_samples=body.get("num_samples"),
        fixture=bool(body.get("fixture")),
        device=body.get("device"),
        kernels=body.get("kernels"),
        kernels_reason=body.get("kernels_reason"),
        **times,
        preprocessing=(body.get("preprocessing") or {}).get("mean_s"),
        facts=facts,
        decoder=(body.get("decoder_speedup") or {}).get("ratio"),
        possible=(body.get("roofline") or {}).get("speedup"),
        end_to_end=whole.get("ratio"),
        memory_kind=body.get("memory_kind"),
        samples=tuple(body.get("samples") or ()),
    )


def mean_interval(
    timings: Mapping[str, Timing], seed: int = 0, stage: str = ""
) -> tuple[float, float] | None:
    """Return the 95 % bootstrap interval of the mean over benchmarks of their speed-ups.

    Samples are drawn within each benchmark, dense and pruned in pairs; of a `stage` alone where one
    is named. None where a benchmark's file has no samples.
    """
    keys = tuple(f"{side}_{stage}_s" if stage else f"{side}_s" for side in SIDES)
    drawn_means = []
    for name in sorted(timings):
        samples = timings[name].samples
        if not samples or any(key not in sample for sample in samples for key in keys):
            return None
        dense, pruned = (np.array([sample[key] for sample in samples]) for key in keys)
        rng = np.random.default_rng([seed, len(samples), *name.encode()])
        rows = max(1, _BLOCK // len(samples))
        ratios = []
        for start in range(0, RESAMPLES, rows):
            size = (min(rows, RESAMPLES - start), len(samples))
            drawn = rng.integers(len(samples), size=size)
            ratios.append(dense[drawn].sum(axis=1) / pruned[drawn].sum(axis=1))
        drawn_means.append(np.concatenate(ratios))
    if not drawn_means:
        return None
    low, high = np.percentile(np.mean(drawn_means, axis=0), [2.5, 97.5])
    return float(low), float(high)


def get_key(body: Any, key: str, file: Path) -> Any:
    """Return a key of a result; InputError that names the file if it is not there."""
    if not isinstance(body, dict) or key not in body:
        raise InputError(f"{file}: no key {key!r}; delete the file and run its stage again")
    return body[key]


def get_number(body: dict[str, Any], key: str, file: Path) -> float:
    """Return a key of a result that is a finite number; InputError otherwise."""
    value = get_key(body, key, file)
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        raise InputError(f"{file}: {key} is {value!r}, not a number; run its stage again")
    return float(value)
