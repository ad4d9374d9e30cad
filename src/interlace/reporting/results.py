"""The results that tables and figures are made of, read from an explicit list of files."""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from interlace.errors import InputError
from interlace.io import read_json
from interlace.reporting.paper import load_paper

MODES = ("cot", "limited")


@dataclass(frozen=True)
class Score:
    """One benchmark score (0-100) of a variant in a generation mode, with its 95 % interval."""

    value: float
    low: float | None = None
    high: float | None = None
    num_samples: int | None = None
    partial: bool = False
    fixture: bool = False
    ungraded: int = 0
    grader: str | None = None
    max_new_tokens: int | None = None


@dataclass(frozen=True)
class Timing:
    """Time to first token of a variant beside dense on one benchmark; times in seconds.

    `dense` and `pruned` map `vision`, `decoder` and `total` to mean seconds (None if not measured).
    `kernels` are those of the variant's decoder, dense or semi_structured, and `kernels_reason` why.
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


@dataclass
class Results:
    """Scores by (model, variant, mode) and timings by (model, variant), each by benchmark."""

    scores: dict[tuple[str, str, str], dict[str, Score]] = field(default_factory=dict)
    timings: dict[tuple[str, str], dict[str, Timing]] = field(default_factory=dict)

    @property
    def models(self) -> set[str]:
        """Keys of the models that have a result."""
        return {key[0] for key in (*self.scores, *self.timings)}

    def max_new_tokens(self, mode: str) -> list[int]:
        """Return the limits on new tokens that the scores of a mode were measured with."""
        scores = (s for key, found in self.scores.items() if key[2] == mode for s in found.values())
        return sorted({s.max_new_tokens for s in scores if s.max_new_tokens is not None})

    def values(self, model: str, variant: str, mode: str) -> dict[str, Score]:
        """Return benchmark -> score; empty if the variant was not evaluated in that mode."""
        return self.scores.get((model, variant, mode), {})

    @property
    def ungraded(self) -> int:
        """Number of answers that no grader judged, over all scores."""
        return sum(s.ungraded for group in self.scores.values() for s in group.values())

    def standin_reasons(self, known: Sequence[str] = ()) -> tuple[str, ...]:
        """Return `known`, and what the files themselves say about standing in, if it is not there."""
        results = [
            result
            for group in (*self.scores.values(), *self.timings.values())
            for result in group.values()
        ]
        graders = {result.grader or "" for result in results if isinstance(result, Score)}
        reasons = list(dict.fromkeys(known))
        if any(r.fixture for r in results) and not any("benchmark" in reason for reason in known):
            reasons.append("benchmarks that are not the official files")
        if any("rules" in g for g in graders) and not any("grader" in reason for reason in known):
            reasons.append("rule-based grader")
        return tuple(reasons)


def load_results(files: Iterable[Path]) -> Results:
    """Read evaluation and TTFT files (told apart by their keys) into one `Results`.

    InputError names a file that lacks a key, holds a number that is none, a benchmark the paper
    does not have, or the same result as another file.
    """
    results = Results()
    origin: dict[tuple[str, ...], Path] = {}
    for file in files:
        body = read_json(file)
        timing = isinstance(body, dict) and "speedup" in body
        names = (
            ("model", "variant", "benchmark")
            if timing
            else ("model", "variant", "mode", "benchmark")
        )
        key = tuple(_get(body, name, file) for name in names)
        if key in origin:
            raise InputError(
                f"{file}: the same result as {origin[key]} ({' '.join(key)}); keep one"
            )
        origin[key] = file
        benchmark = key[-1]
        if benchmark not in load_paper().names:
            raise InputError(
                f"{file}: benchmark {benchmark!r} is in none of the paper's tables "
                f"({', '.join(load_paper().names)})"
            )
        if timing:
            results.timings.setdefault(key[:2], {})[benchmark] = _timing(body, file)
        else:
            if key[2] not in MODES:
                raise InputError(f"{file}: mode {key[2]!r} is not one of {', '.join(MODES)}")
            results.scores.setdefault(key[:3], {})[benchmark] = _score(body, file)
    return results


def _score(body: dict[str, Any], file: Path) -> Score:
    low, high = body.get("interval") or (None, None)
    grader = body.get("grader") or {}
    return Score(
        value=_number(body, "score", file),
        low=low,
        high=high,
        num_samples=body.get("num_samples"),
        partial=bool(body.get("partial")),
        fixture=bool(body.get("fixture")),
        ungraded=int(grader.get("ungraded") or 0),
        grader=grader.get("model"),
        max_new_tokens=(body.get("generation") or {}).get("max_new_tokens"),
    )


def _timing(body: dict[str, Any], file: Path) -> Timing:
    low, high = body.get("speedup_interval") or (None, None)
    times = {}
    for side in ("dense", "pruned"):
        split = (body.get("split") or {}).get(side) or {}
        times[side] = {
            "total": _get(_get(body, side, file), "mean_s", file),
            "vision": split.get("vision_s"),
            "decoder": split.get("decoder_s"),
        }
    return Timing(
        speedup=_number(body, "speedup", file),
        low=low,
        high=high,
        num_samples=body.get("num_samples"),
        fixture=bool(body.get("fixture")),
        device=body.get("device"),
        kernels=body.get("kernels"),
        kernels_reason=body.get("kernels_reason"),
        **times,
    )


def _get(body: Any, key: str, file: Path) -> Any:
    if not isinstance(body, dict) or key not in body:
        raise InputError(f"{file}: no key {key!r}; delete the file and run its stage again")
    return body[key]


def _number(body: dict[str, Any], key: str, file: Path) -> float:
    value = _get(body, key, file)
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        raise InputError(f"{file}: {key} is {value!r}, not a number; run its stage again")
    return float(value)
