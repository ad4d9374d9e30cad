"""The scores on a model card: those of this very checkpoint, beside the dense model's."""

from collections.abc import Iterable, Sequence
from pathlib import Path

from interlace.io import read_json
from interlace.reporting.averages import average, relative_performance
from interlace.reporting.paper import load_paper
from interlace.reporting.render import MISSING, PARTIAL, number
from interlace.reporting.results import MODES, Results, Score, load_results

MODE_NAMES = {"cot": "long answers (CoT)", "limited": "short answers (limited)"}


def known_scores(files: Sequence[Path], variant: str, revision: str) -> tuple[Results, list[Path]]:
    """Return the scores in evaluation `files`, and which files are of other weights, left out.

    `revision` is `stamps.checkpoint_digest` of the variant's checkpoint: a score of an
    earlier one must not stand on its card. Files of other variants (dense) are taken as they are.
    """
    stale = []
    for file in files:
        body = read_json(file)
        measured = (body.get("provenance") or {}).get("model_revision")
        if body.get("variant") == variant and measured != revision:
            stale.append(file)
    return load_results(file for file in files if file not in stale), stale


def score_section(results: Results, model: str, variant: str) -> list[str]:
    """Return the card's lines: a table per mode; nothing where the variant has no score."""
    lines: list[str] = []
    for mode in MODES:
        found = results.values(model, variant, mode)
        if not found:
            continue
        lines += ["", *_mode(mode, found, results.values(model, "dense", mode))]
    if not lines:
        return []
    return [
        "Measured by VLMEvalKit, 0-100, with the 95 % interval over questions; beside it the dense"
        " base model, measured in the same way.",
        *lines,
        *_remarks(results, model, variant),
    ]


def _mode(mode: str, found: dict[str, Score], dense: dict[str, Score]) -> list[str]:
    order = [name for name in load_paper().names if name in found]
    limits = sorted({s.max_new_tokens for s in found.values() if s.max_new_tokens is not None})
    limit = f", at most {' or '.join(map(str, limits))} new tokens" if limits else ""
    ours = {name: score.value for name, score in found.items()}
    theirs = {name: score.value for name, score in dense.items()}
    rows = []
    for name in order:
        score = found[name]
        interval = f" [{score.low:.1f}, {score.high:.1f}]" if score.low is not None else ""
        count = MISSING if score.num_samples is None else f"{score.num_samples:,}"
        rows.append(
            f"| {name} | {_marked(score.value, [score])}{interval} "
            f"| {_marked(theirs.get(name), [dense[name]] if name in dense else [])} | {count} |"
        )
    mean = _marked(average(ours, order).value, found.values())
    beside = [dense[name] for name in order if name in dense]
    dense_mean = average(theirs, order)
    shared = _marked(dense_mean.value, beside) if dense_mean.complete else MISSING
    lines = [
        f"**{MODE_NAMES[mode]}**{limit}",
        "",
        "| benchmark | score | dense | questions |",
        "|---|---|---|---|",
        *rows,
        f"| mean of {len(order)} | {mean} | {shared} | |",
    ]
    unlike = [n for n in order if n in dense and not found[n].asked_like(dense[n])]
    if unlike:
        lines += [
            "",
            "No share of the dense model's mean: the two were not asked the same questions of "
            f"{', '.join(unlike)}.",
        ]
        return lines
    kept = relative_performance(ours, theirs, order)
    if kept.value is not None:
        partly = any(score.partial for score in beside)
        lines += [
            "",
            f"{kept.value:.1f} %{PARTIAL if partly else ''} of the dense model's mean, over "
            f"{kept.count} benchmark(s){', in part' if partly else ''}.",
        ]
    return lines


def _marked(value: float | None, scores: Iterable[Score]) -> str:
    """Return a number, with a dagger where one of the `scores` it comes from is partial."""
    mark = PARTIAL if value is not None and any(score.partial for score in scores) else ""
    return number(value, 2) + mark


def _remarks(results: Results, model: str, variant: str) -> list[str]:
    scores = []
    for mode in MODES:
        found, dense = (results.values(model, name, mode) for name in (variant, "dense"))
        scores += [*found.values(), *(dense[name] for name in found if name in dense)]
    remarks = []
    if any(score.partial for score in scores):
        remarks.append(f"{PARTIAL} measured on a part of the benchmark's questions.")
    if any(score.fixture for score in scores):
        remarks.append("The benchmarks are stand-ins, not the official files.")
    graders = sorted({score.grader for score in scores if score.grader})
    if graders:
        remarks.append(f"Free text was graded by {', '.join(graders)}.")
    return ["", " ".join(remarks)] if remarks else []
