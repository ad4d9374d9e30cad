"""The results that tables and figures are made of, read from an explicit list of files."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from interlace.errors import InputError
from interlace.io import read_json
from interlace.reporting.paper import load_paper
from interlace.reporting.timings import Timing, get_key, get_number, read_timing

MODES = ("cot", "limited")
_HIGHEST = 100 + 1e-6
"""Scores are at most 100, but for the last bit of a sum."""


@dataclass(frozen=True)
class Score:
    """One benchmark score (0-100) of a variant in a generation mode, with its 95 % interval.

    `grader` is the model that graded and `prompt` its prompt's version, None where none did.
    `generation`: the settings it was generated with. `unparsed`, `empty`, `cut`: shares (0-1) of
    answers that could not be read, were empty, or ended at the limit on new tokens; None if not
    recorded. `files`: the results it was read from, and `outcomes` the Parquet files beside them,
    none if one lacks its own. `tsv`: md5 of the benchmark's file. `device`: what it was generated on,
    cuda or cpu; `revision` its checkpoint, `versions` those of packages. `by_seed`: where it is a mean over
    seeds, the score of each (the run's own seed is None).
    """

    value: float
    low: float | None = None
    high: float | None = None
    num_samples: int | None = None
    partial: bool = False
    fixture: bool = False
    ungraded: int = 0
    grader: str | None = None
    max_new_tokens: int | None = None
    grader_kind: str | None = None
    prompt: str | None = None
    generation: Mapping[str, Any] = field(default_factory=dict)
    unparsed: float | None = None
    empty: float | None = None
    cut: float | None = None
    files: tuple[Path, ...] = ()
    outcomes: tuple[Path, ...] = ()
    tsv: str | None = None
    device: str | None = None
    revision: str | None = None
    versions: Mapping[str, str | None] = field(default_factory=dict)
    by_seed: Mapping[int | None, float] = field(default_factory=dict)

    def asked_like(self, other: "Score") -> bool:
        """Whether both are of the same questions, as far as TSV, number of rows and limit tell."""
        known = ((self.tsv, other.tsv), (self.num_samples, other.num_samples))
        alike = all(a == b for a, b in known if a is not None and b is not None)
        return alike and self.partial == other.partial


@dataclass
class Results:
    """Scores by (model, variant, mode) and timings by (model, variant), each by benchmark.

    `remarks`: what has to be said below whatever is made of them (`seeds.over_seeds`).
    """

    scores: dict[tuple[str, str, str], dict[str, Score]] = field(default_factory=dict)
    timings: dict[tuple[str, str], dict[str, Timing]] = field(default_factory=dict)
    remarks: list[str] = field(default_factory=list)

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
        key = tuple(get_key(body, name, file) for name in names)
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
            results.timings.setdefault(key[:2], {})[benchmark] = read_timing(body, file)
        else:
            if key[2] not in MODES:
                raise InputError(f"{file}: mode {key[2]!r} is not one of {', '.join(MODES)}")
            results.scores.setdefault(key[:3], {})[benchmark] = _score(body, file)
    return results


def _score(body: dict[str, Any], file: Path) -> Score:
    value = get_number(body, "score", file)
    if not 0 <= value <= _HIGHEST:
        raise InputError(f"{file}: score is {value:.6g}, not within 0 and 100; evaluate again")
    low, high = _interval(body.get("interval"), file)
    grader = body.get("grader") or {}
    generation = body.get("generation") or {}
    provenance = body.get("provenance") or {}
    rows, empty, finished = (
        body.get(key) for key in ("num_samples", "empty_predictions", "finished_share")
    )
    outcomes = file.with_suffix(".parquet")
    return Score(
        value=value,
        low=low,
        high=high,
        num_samples=rows,
        partial=bool(body.get("partial")),
        fixture=bool(body.get("fixture")),
        ungraded=int(grader.get("ungraded") or 0),
        grader=grader.get("model"),
        max_new_tokens=generation.get("max_new_tokens"),
        grader_kind=grader.get("kind"),
        prompt=grader.get("prompt"),
        generation=generation,
        unparsed=grader.get("unparsed_share"),
        empty=empty / rows if rows and empty is not None else None,
        cut=None if finished is None else 1 - finished,
        files=(file,),
        outcomes=(outcomes,) if outcomes.exists() else (),
        tsv=(body.get("tsv") or {}).get("md5"),
        device=body.get("device"),
        revision=provenance.get("model_revision"),
        versions=provenance.get("versions") or {},
    )


def _interval(ends: Any, file: Path) -> tuple[float | None, float | None]:
    """Return an interval's two ends, (None, None) where a result has none."""
    if ends is None:
        return None, None
    if isinstance(ends, list) and len(ends) == 2:
        numbers = [e for e in ends if isinstance(e, int | float) and not isinstance(e, bool)]
        if len(numbers) == 2 and 0 <= numbers[0] <= numbers[1] <= _HIGHEST:
            return float(numbers[0]), float(numbers[1])
    raise InputError(
        f"{file}: interval is {ends!r}, not two numbers within 0 and 100, the lower first; "
        "evaluate again"
    )
