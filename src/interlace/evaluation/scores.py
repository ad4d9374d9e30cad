"""VLMEvalKit's own score files, read to one number per benchmark on a scale of 0 to 100."""

import contextlib
import io
import json
import tempfile
from pathlib import Path

import numpy as np
import pandas as pd

from interlace.errors import InputError
from interlace.evaluation.benchmarks import by_dataset
from interlace.io import digest

OCR_ROWS = 5  # whose hits one call of OCRBench's evaluate() tells


def read_score(dataset: str, stem: Path, rows: int, judge: str = "exact_matching") -> float:
    """Return the score (0-100) that vlmeval's evaluate() left beside `<stem>.tsv`.

    `rows` is the number of predictions; OCRBench counts hits, so its percentage needs it. POPE is
    F1. Raises InputError where a benchmark of several splits has no overall score.
    """
    if dataset.startswith("HRBench"):
        table = pd.read_csv(f"{stem}_acc.csv")
        overall = table[(table["cycle"] == "Average") & (table["type"] == "all")]
        return 100 * float(overall["accuracy"].iloc[0])
    if dataset in ("ChartQA_TEST", "TextVQA_VAL"):
        return float(pd.read_csv(f"{stem}_acc.csv")["Overall"][0])
    if dataset == "POPE":
        table = pd.read_csv(f"{stem}_score.csv").set_index("split")
        return float(table.loc["Overall", "Overall"])
    if dataset == "OCRBench":
        score = json.loads(Path(f"{stem}_score.json").read_text(encoding="utf-8"))
        return 100 * float(score["Final Score"]) / rows
    if dataset == "MIA-Bench":
        table = pd.read_csv(f"{stem}_{judge}_score.csv", dtype=str).set_index("0")
        return 100 * float(table["1"]["total_score"])
    by_dataset(dataset)
    table = pd.read_csv(f"{stem}_acc.csv")
    if len(table) != 1:
        raise InputError(
            f"{dataset}.tsv: column split has {len(table)} values, so there is no single score; "
            "keep the rows of one split"
        )
    return 100 * float(table["Overall"][0])


def read_outcomes(
    dataset: str, stem: Path, questions: pd.Series, judge: str = "exact_matching"
) -> pd.DataFrame:
    """Return per-sample outcomes from vlmeval's result files beside `<stem>.tsv`.

    Columns `index`, `question`, `hit`, `value` and `weight` as in `outcomes.SCHEMA`; the score is
    100 * sum(value) / sum(weight). `questions` maps a row's index (a string) to what is asked of
    which picture: HR-Bench asks that four times with its options rotated, and those rows share a
    question. Of MMBench there is one row per question, under the index of its first rotation, whose
    `hit` is that of all rotations together.
    """
    if dataset in ("ChartQA_TEST", "TextVQA_VAL"):
        table = _table(f"{stem}_results.tsv")
        matches = table["eval_match"].map(json.loads if dataset == "TextVQA_VAL" else _python_list)
        best = np.max if dataset == "ChartQA_TEST" else np.mean
        table["hit"] = [float(best(match)) for match in matches]
    elif dataset == "POPE":
        table = _table(f"{stem}_auxmatch.tsv")
        table["hit"] = table["answer"] == table["extracted"]
    elif dataset == "MIA-Bench":
        table = _table(f"{stem}_{judge}.tsv")
        table["hit"] = list(map(total_grade, table["score_raw"], table["component_type"]))
    elif dataset == "OCRBench":
        table = _ocr(stem)
    else:
        table = _table(f"{stem}_{judge}_result.tsv")
    hit, index = table["hit"].astype(float), table["index"].astype(str)
    value, weight = hit, pd.Series(1.0, table.index)
    if dataset == "POPE":
        value, weight = _f1_parts(table)
    elif dataset == "MIA-Bench":
        # A grade that vlmeval cannot read has no part in its mean.
        value, weight = hit.fillna(0.0), hit.notna().astype(float)
    elif dataset.startswith("HRBench"):
        # The score is the mean over the four rotations' accuracies, whatever their sizes.
        weight = 1.0 / table.groupby("cycle_category")["index"].transform("size")
        value = hit * weight
    asked = [questions[name] for name in index]
    if not dataset.startswith("HRBench"):
        # Two rows may ask the same of the same picture with other options: two questions.
        asked = [digest(pair) for pair in zip(index, asked, strict=True)]
    columns = {"index": index, "question": asked, "hit": hit, "value": value, "weight": weight}
    return pd.DataFrame(columns).reset_index(drop=True)


def _table(path: str) -> pd.DataFrame:
    return pd.read_csv(path, sep="\t", keep_default_na=False, dtype={"index": str})


def _python_list(text: str) -> list[float]:
    return [float(part in ("True", "1", "1.0")) for part in text.strip("[]").split(", ")]


def _ocr(stem: Path) -> pd.DataFrame:
    """Return OCRBench's predictions with the hits that its evaluate() counts but does not write.

    Five rows are asked about at a time, the k-th of them 2^k times: what it counts is their hits as
    binary digits. Row by row takes four times as long.
    """
    from vlmeval.dataset.image_vqa import OCRBench
    from vlmeval.smp import load

    table = load(f"{stem}.tsv")
    hits: list[float] = []
    with tempfile.TemporaryDirectory() as folder, contextlib.redirect_stderr(io.StringIO()):
        part = Path(folder) / "part.pkl"  # a pickle keeps the types that the whole table has
        for start in range(0, len(table), OCR_ROWS):
            rows = range(start, min(start + OCR_ROWS, len(table)))
            table.iloc[[row for row in rows for _ in range(2 ** (row - start))]].to_pickle(part)
            counted = int(OCRBench.evaluate(str(part))["Final Score"])
            hits += [float(counted >> (row - start) & 1) for row in rows]
    return table.assign(hit=hits)


def _f1_parts(table: pd.DataFrame) -> tuple[pd.Series, pd.Series]:
    """F1 = 2 tp / (2 tp + fp + fn); a row counts once per category that it names."""
    times = table["category"].astype(str).str.split(",").map(len)
    truth, said = table["answer"] == "Yes", table["extracted"] == "Yes"
    both = 2.0 * (truth & said) * times
    return both, both + (truth ^ said) * times


def total_grade(raw: object, component_type: object) -> float | None:
    """Return a MIA-Bench grade's total (0-1) as vlmeval reads it, or None where it drops the row.

    `component_type` is the row's column.
    """
    from vlmeval.dataset.miabench import get_score_dict

    row = {"component_type": [str(component_type)]}
    return get_score_dict(pd.DataFrame(row), [str(raw)]).get("total_score")


def ratio(outcomes: pd.DataFrame) -> float:
    """Return the score (0-100) that outcomes add up to."""
    weight = outcomes["weight"].sum()
    return 100 * float(outcomes["value"].sum() / weight) if weight else 0.0
