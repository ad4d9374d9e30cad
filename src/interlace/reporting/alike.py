"""Whether results may stand in one table: generated and graded in the same way."""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from interlace.errors import InputError
from interlace.reporting.resamples import unlike_questions
from interlace.reporting.results import Results, Score


def check_alike(results: Results) -> None:
    """Raise InputError for results of one model and benchmark that differ in how they were made.

    Every setting of `generation` has to be the same, `max_new_tokens` within a mode, and over all
    models what graded a benchmark: its kind, model and prompt. Results that are not partial must be
    of the same TSV and as many rows. The message names both files and the key. A result without any
    `generation`, grader, TSV or device is not compared in it; one setting that a `generation` lacks
    is another one than any. Where results record them, all of a variant have to be of one checkpoint,
    and those of a model and benchmark of the same versions of vlmeval and transformers. Batch sizes
    are not compared: in 16 bits they show in single tokens, but who runs out of memory on one
    benchmark need not do the others again. To be called before seeds are averaged.
    """
    generations: dict[tuple[str, ...], tuple[Score, Mapping[str, Any]]] = {}
    devices: dict[tuple[str, str], tuple[Score, Mapping[str, Any]]] = {}
    graders: dict[str, tuple[Score, Mapping[str, Any]]] = {}
    asked: dict[tuple[str, str, str], tuple[Score, Any]] = {}
    revisions: dict[tuple[str, str], tuple[Score, Mapping[str, Any]]] = {}
    versions: dict[tuple[str, ...], tuple[Score, Mapping[str, Any]]] = {}
    for model, variant, mode, benchmark, score in _scores(results):
        if score.revision is not None:
            found = {"model_revision": score.revision}
            _compare("provenance", (score, found), revisions, (model, variant))
        for name in ("vlmeval", "transformers"):
            if score.versions.get(name) is not None:
                found = {name: score.versions[name]}
                _compare("provenance.versions", (score, found), versions, (model, benchmark, name))
        settings = dict(score.generation)
        limit = {"max_new_tokens": settings.pop("max_new_tokens", None)}
        if settings:
            _compare("generation", (score, settings), generations, (model, benchmark))
        if limit["max_new_tokens"] is not None:
            _compare("generation", (score, limit), generations, (model, benchmark, mode))
        if score.device is not None:
            _compare("result", (score, {"device": score.device}), devices, (model, benchmark))
        if score.grader_kind is not None:
            grader = {"kind": score.grader_kind, "model": score.grader, "prompt": score.prompt}
            _compare("grader", (score, grader), graders, benchmark)
        if not score.partial:
            for what, found in (("tsv.md5", score.tsv), ("num_samples", score.num_samples)):
                if found is None:
                    continue
                other, theirs = asked.setdefault((model, benchmark, what), (score, found))
                if found != theirs:
                    raise unlike_questions(
                        _file(other), _file(score), f"{what} is {theirs} and {found}"
                    )


def _scores(results: Results) -> Iterator[tuple[str, str, str, str, Score]]:
    for (model, variant, mode), found in results.scores.items():
        for benchmark, score in found.items():
            yield model, variant, mode, benchmark, score


def _compare(section: str, made: tuple[Score, Mapping[str, Any]], known: dict, key: Any) -> None:
    score, settings = made
    other, theirs = known.setdefault(key, made)
    for name in dict.fromkeys((*theirs, *settings)):
        if settings.get(name) != theirs.get(name):
            raise InputError(
                f"{_file(other)} and {_file(score)}: {section}.{name} is {theirs.get(name)!r} and "
                f"{settings.get(name)!r}; delete one and evaluate it again with the other's settings"
            )


def _file(score: Score) -> Path | str:
    return score.files[0] if score.files else "a result"
