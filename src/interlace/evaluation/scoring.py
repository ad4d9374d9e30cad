"""Predictions scored by VLMEvalKit's evaluate(): exact matching, or a grader where one reads them."""

import contextlib
from pathlib import Path
from typing import Any

from interlace.errors import InputError
from interlace.evaluation import cost, kit
from interlace.evaluation.benchmarks import Benchmark, asks_grader
from interlace.evaluation.grader_client import CallFailed
from interlace.evaluation.grading import JUDGE, Grader
from interlace.io import remove

EXACT = "exact_matching"
_PREDICTIONS, _REPLIES = "predictions.tsv", "replies.jsonl"


def grades(benchmark: Benchmark, grader: Grader | None) -> bool:
    """Return whether `grader` reads a benchmark's answers."""
    return grader is not None and asks_grader(benchmark, grader.extract)


def score_predictions(
    benchmark: Benchmark,
    dataset: Any,
    folder: Path,
    grader: Grader | None,
) -> dict[str, Any]:
    """Let vlmeval score `folder/predictions.tsv`; return the `grader` record of a result.

    To be called in a `kit_environment`. `dataset` is vlmeval's, over the same rows. Whatever else
    lies in `folder` from an attempt before is deleted, since vlmeval takes any file it finds for its
    own; a grader's replies that could be read are kept there, and only the others are asked for
    again.

    The record: `kind` (none, exact_matching, openai or demo: who read the answers), `model`,
    `prompt` (VLMEvalKit's version and a digest of its prompts), `answers` (rows that `kind` read),
    `unparsed` (rows in which a choice, or yes or no, had to be read and nobody found one: they count
    as wrong) with its share of all rows, `ungraded`, `judge`, the name in vlmeval's files; where a
    grader read, `unreadable_replies`: how often its reply could not be read, over all attempts.
    `unparsed` is None where there is nothing of the kind to read: rules of a benchmark's own, and
    MIA-Bench, whose rows all have a grade, since one without is an error. The rows of a question of
    MMBench that a wrong rotation decides do not have to be read.

    Raises InputError if the estimate is above the budget, before any call, and for rows that stayed
    ungraded.
    """
    table = folder / _PREDICTIONS
    for path in folder.iterdir():
        if path.name not in (_PREDICTIONS, _REPLIES):
            remove(path)
    with kit.scoring_patches(folder):
        if grades(benchmark, grader):
            return _graded(benchmark, dataset, table, grader)
        assert not benchmark.needs_grader, f"{benchmark.name} cannot be scored without a grader"
        dataset.evaluate(str(table), model=EXACT, nproc=1)
        rows = len(dataset.data)
        if not benchmark.exact_matching:
            return _record("none", EXACT, 0, None, rows)
        from interlace.evaluation.questions import questions

        return _record(EXACT, EXACT, rows, len(questions(benchmark, dataset, table, EXACT)), rows)


def _graded(benchmark: Benchmark, dataset: Any, table: Path, grader: Grader) -> dict[str, Any]:
    from interlace.evaluation.judging import Judge, judged_by
    from interlace.evaluation.questions import prompt_version, questions, unparsed
    from interlace.evaluation.replies import Replies

    kit.load_vlmeval()
    asked = questions(benchmark, dataset, table, grader.model)
    kept = Replies(table.with_name(_REPLIES))
    to_come = {q.key: q.call for q in asked if q.key not in kept.found}
    if to_come and grader.billed:
        found = cost.estimate(list(to_come.values()), grader.model, grader.price)
        cost.announce(
            benchmark.dataset,
            found,
            grader.model,
            grader.base_url,
            grader.budget,
            grader.account,
        )
    judge = Judge(grader, asked, kept)
    # What failed is told below, with the rows it concerns.
    with judged_by(judge), contextlib.suppress(CallFailed):
        dataset.evaluate(str(table), model=JUDGE, nproc=grader.parallel)
    if judge.calls and grader.billed:
        spent = "" if grader.price is None else f", about {grader.account.spent:.2f} in this job"
        print(f"{benchmark.dataset}: {judge.calls} calls were asked{spent}", flush=True)
    rows = len(dataset.data)
    if bad := judge.ungraded(asked):
        raise InputError(_refusal(benchmark, grader, bad, rows, judge.ended))
    answers = sum(question.key in judge.replies for question in asked)
    missed = None if benchmark.needs_grader else unparsed(asked, judge.replies)
    record = _record(grader.kind, JUDGE, answers, missed, rows)
    return {
        **record,
        "model": grader.model,
        "prompt": prompt_version(benchmark),
        "unreadable_replies": kept.unreadable,
    }


def _refusal(
    benchmark: Benchmark, grader: Grader, bad: list[tuple[str, str]], rows: int, ended: str | None
) -> str:
    """Return what to tell of the rows in `bad` (index, reason); print all of them, by reason."""
    by_reason: dict[str, list[str]] = {}
    for index, reason in bad:
        by_reason.setdefault(reason, []).append(index)
    for reason, indices in by_reason.items():
        print(f"{benchmark.dataset}: not graded: index {', '.join(indices)}: {reason}", flush=True)
    shown = ", ".join(index for index, _ in bad[:10]) + (", ..." if len(bad) > 10 else "")
    reason = bad[0][1]
    if ended is not None and ended != reason:
        reason += f"; others: {ended}"
    without = (
        f"leave {benchmark.name} out of evaluation.benchmarks"
        if benchmark.needs_grader
        else "set evaluation.grader.extract to false"
    )
    return (
        f"{benchmark.dataset}: {len(bad)} of {rows} rows were not graded by {grader.model} at "
        f"{grader.base_url} (index {shown}): {reason}; mend the grader and run again: the grades "
        "that could be read are kept; if it refuses these rows every time, give another "
        f"evaluation.grader.model for all results, or {without}"
    )


def _record(kind: str, judge: str, answers: int, missed: int | None, rows: int) -> dict[str, Any]:
    return {
        "kind": kind,
        "model": None,
        "prompt": None,
        "answers": answers,
        "unparsed": missed,
        "unparsed_share": None if missed is None else missed / rows,
        "ungraded": 0,
        "judge": judge,
    }
