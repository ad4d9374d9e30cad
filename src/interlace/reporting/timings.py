"""TTFT results, read from their files."""

import math
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from interlace.errors import InputError
from interlace.evaluation.ttft.ratios import STAGES, draws, has_width, interval

SIDES = ("dense", "pruned")
_COLUMNS = (
    "visual_tokens",
    *(f"{side}{part}_s" for side in SIDES for part in ("", "_decoder", "_roofline")),
)

MADE_ALIKE = {
    "device": "model",
    "threads": "model",
    "dtype": "model",
    "attention": "run",
    "prompt": "run",
    "min_pixels": "benchmark",
    "max_pixels": "benchmark",
    "num_samples": "benchmark",
    "kernels": "variant",
    "provenance.versions.torch": "model",
}
"""What TTFT files must have in common, and among which: those of a run, of a model, of a benchmark
(of a model), of a variant. Two models may have been timed on two devices."""


@dataclass(frozen=True)
class Timing:
    """Time to first token of a variant beside dense on one benchmark; times in seconds.

    `dense` and `pruned` map `total` and each of `STAGES` to mean seconds (None if not measured);
    `preprocessing` is the same for both. `facts` map what else was measured of a side
    to its number, under the names of the file (`decode_tokens_per_s`, `peak_memory_bytes`,
    `weights_disk_bytes`, `num_layers`). `decoder` is the speed-up of the decoder alone, `possible`
    the roofline's of the whole. `kernels` are those of the variant's decoder, dense or
    semi_structured, and `kernels_reason` why. `made` maps the keys of `MADE_ALIKE` to what `file`
    says of them, None if nothing. `samples` are those of the file by column, none in an older one:
    `index`, and times and visual tokens as numbers, NaN where the file does not say.
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
    made: dict[str, Any] = field(default_factory=dict)
    file: Path | None = None
    samples: Mapping[str, np.ndarray] = field(default_factory=dict, repr=False, compare=False)


FACTS = ("num_layers", "decode_tokens_per_s", "peak_memory_bytes", "weights_disk_bytes")


def read_timing(body: dict[str, Any], file: Path) -> Timing:
    """Return what a TTFT file holds; what an older or a smaller one lacks is None.

    InputError names the file and the key if there is no speed-up or no mean of both sides, if a time
    or a ratio is not a positive number, or if means and speed-ups are not those of the samples.
    """
    checked = _Body(body, file)
    times, facts = {}, {}
    for side in SIDES:
        times[side] = {
            "total": checked.number(side, "mean_s", required=True),
            **{stage: checked.number("split", side, f"{stage}_s", least=None) for stage in STAGES},
        }
        facts[side] = {fact: checked.number(side, fact) for fact in FACTS}
    samples = checked.samples()
    low, high = checked.interval("speedup_interval")
    if samples and len(samples["index"]) == 1:
        low = high = None
    timing = Timing(
        speedup=checked.number("speedup", required=True),
        low=low,
        high=high,
        num_samples=checked.count("num_samples"),
        fixture=bool(body.get("fixture")),
        device=checked.text("device"),
        kernels=checked.text("kernels"),
        kernels_reason=checked.text("kernels_reason"),
        **times,
        preprocessing=checked.number("preprocessing", "mean_s", least=0.0),
        facts=facts,
        decoder=checked.number("decoder_speedup", "ratio"),
        possible=checked.number("roofline", "speedup"),
        end_to_end=checked.number("end_to_end", "ratio"),
        memory_kind=checked.text("memory_kind"),
        made={key: checked.plain(*key.split(".")) for key in MADE_ALIKE},
        file=file,
        samples=samples,
    )
    if samples:
        checked.compare(timing)
    return timing


class _Body:
    """A TTFT file's body, whose values are checked as they are read."""

    def __init__(self, body: dict[str, Any], file: Path) -> None:
        self.body, self.file = body, file

    def wrong(self, key: str, value: Any, what: str) -> InputError:
        return InputError(
            f"{self.file}: {key} is {value!r:.60}, not {what}; delete the file and run its stage again"
        )

    def get(self, *path: str, required: bool = False) -> Any:
        """Return a value by its path, None where there is none of it."""
        found: Any = self.body
        for depth, key in enumerate(path):
            if not isinstance(found, dict):
                raise self.wrong(".".join(path[:depth]), found, "a group of keys")
            if required:
                get_key(found, key, self.file)
            found = found.get(key)
            if found is None and not required:
                return None
        return found

    def number(
        self, *path: str, required: bool = False, least: float | None = math.ulp(0.0)
    ) -> float | None:
        """Return a finite number, a positive one unless `least` says otherwise."""
        value = self.get(*path, required=required)
        if value is None and not required:
            return None
        return self._number(".".join(path), value, least)

    def _number(self, key: str, value: Any, least: float | None) -> float:
        if not is_number(value) or (least is not None and value < least):
            kind = {None: "a number", 0.0: "a number from 0"}.get(least, "a positive number")
            raise self.wrong(key, value, kind)
        return float(value)

    def count(self, key: str) -> int | None:
        value = self.get(key)
        if value is not None and (isinstance(value, bool) or not isinstance(value, int)):
            raise self.wrong(key, value, "a count")
        return value

    def text(self, key: str) -> str | None:
        value = self.get(key)
        if value is not None and not isinstance(value, str):
            raise self.wrong(key, value, "a text")
        return value

    def plain(self, *path: str) -> str | float | None:
        value = self.get(*path)
        if value is not None and not isinstance(value, str | int | float):
            raise self.wrong(".".join(path), value, "a text or a number")
        return value

    def interval(self, key: str) -> tuple[float, float] | tuple[None, None]:
        """Return an interval of a ratio, (None, None) where there is none or it has no width."""
        value = self.get(key)
        if value is None:
            return None, None
        if not (
            isinstance(value, list)
            and len(value) == 2
            and all(is_number(end) and end > 0 for end in value)
            and value[0] <= value[1]
        ):
            raise self.wrong(key, value, "two positive numbers in their order, or null")
        low, high = map(float, value)
        return (low, high) if has_width(low, high) else (None, None)

    def samples(self) -> dict[str, np.ndarray]:
        """Return the samples by column; an older file has none of them.

        As arrays of what is read alone: the paper's run has 26,600 samples a variant.
        """
        rows = self.get("samples")
        if rows is None:
            return {}
        if not isinstance(rows, list) or not rows or not all(isinstance(r, dict) for r in rows):
            raise self.wrong("samples", rows, "a list of samples")
        for number, row in enumerate(rows):
            for key in ("dense_s", "pruned_s"):
                self._number(f"samples[{number}].{key}", row.get(key), _least(key))
            for key, value in row.items():
                if (key.endswith("_s") or key == "visual_tokens") and value is not None:
                    self._number(f"samples[{number}].{key}", value, _least(key))
        columns = {
            key: np.array([row.get(key) for row in rows], dtype=float)  # None becomes NaN
            for key in _COLUMNS
        }
        return columns | {
            "index": np.array([str(row.get("index", number)) for number, row in enumerate(rows)])
        }

    def compare(self, timing: Timing) -> None:
        """InputError where means, speed-ups or the count are not those of the samples."""
        samples = timing.samples
        given: dict[str, tuple[float | None, float]] = {
            "num_samples": (timing.num_samples, len(samples["index"]))
        }
        dense, pruned = (float(samples[f"{side}_s"].mean()) for side in SIDES)
        given |= {
            "dense.mean_s": (timing.dense["total"], dense),
            "pruned.mean_s": (timing.pruned["total"], pruned),
            "speedup": (timing.speedup, dense / pruned),
        }
        parts = [samples[f"{side}_decoder_s"] for side in SIDES]
        if all((part > 0).all() for part in parts):
            again = float(parts[0].mean() / parts[1].mean())
            given["decoder_speedup.ratio"] = (timing.decoder, again)
        for key, (value, again) in given.items():
            if value is not None and not math.isclose(value, again, rel_tol=1e-6):
                raise self.wrong(key, value, f"{again:.9g}, which its samples give")


def _least(key: str) -> float | None:
    """Return how small a sample's number may be: totals are positive, a stage may be nothing."""
    if key in ("dense_s", "pruned_s"):
        return math.ulp(0.0)
    return None if key.endswith("_rest_s") else 0.0


def check_timings_alike(timings: Mapping[tuple[str, str], Mapping[str, Timing]]) -> None:
    """InputError that names two TTFT files, by (model, variant) and benchmark, not made alike.

    By `MADE_ALIKE`; what a file does not say is not compared.
    """
    seen: dict[tuple[str, ...], Timing] = {}
    for (model, variant), found in timings.items():
        for benchmark, timing in found.items():
            among = {
                "run": (),
                "model": (model,),
                "benchmark": (model, benchmark),
                "variant": (model, variant),
            }
            for key, scope in MADE_ALIKE.items():
                value = timing.made.get(key)
                if value is None:
                    continue
                first = seen.setdefault((key, *among[scope]), timing)
                if first.made[key] != value:
                    raise InputError(
                        f"{timing.file}: {key} is {value!r:.60}, and {first.made[key]!r:.60} in "
                        f"{first.file}; times that were measured differently cannot be compared, "
                        "measure one of them again"
                    )


def mean_interval(
    timings: Mapping[str, Timing], seed: int = 0, stage: str = ""
) -> tuple[float, float] | None:
    """Return the 95 % bootstrap interval of the mean over benchmarks of their speed-ups.

    Samples are drawn within each benchmark, dense and pruned in pairs; of a `stage` alone where one
    is named; any benchmarks will do, those of a category or all. None where a benchmark's file has
    no samples or a single one, and where all draws give the same.
    """
    keys = tuple(f"{side}_{stage}_s" if stage else f"{side}_s" for side in SIDES)
    drawn_means = []
    for name in sorted(timings):
        samples = timings[name].samples
        if not samples or len(samples["index"]) < 2:
            return None
        dense, pruned = (samples[key] for key in keys)
        if not ((dense > 0).all() and (pruned > 0).all()):  # NaN too
            return None
        rng = np.random.default_rng([seed, len(dense), *name.encode()])
        ratios = [a.sum(axis=1) / b.sum(axis=1) for a, b in draws(dense, pruned, rng)]
        drawn_means.append(np.concatenate(ratios))
    return interval(np.mean(drawn_means, axis=0)) if drawn_means else None


def get_key(body: Any, key: str, file: Path) -> Any:
    """Return a key of a result; InputError that names the file if it is not there."""
    if not isinstance(body, dict) or key not in body:
        raise InputError(f"{file}: no key {key!r}; delete the file and run its stage again")
    return body[key]


def is_number(value: Any) -> bool:
    """Whether a value of a result is a finite number."""
    number = isinstance(value, int | float) and not isinstance(value, bool)
    return number and abs(value) <= sys.float_info.max  # NaN compares false


def get_number(body: dict[str, Any], key: str, file: Path) -> float:
    """Return a key of a result that is a finite number; InputError otherwise."""
    value = get_key(body, key, file)
    if not is_number(value):
        raise InputError(f"{file}: {key} is {value!r}, not a number; run its stage again")
    return float(value)
