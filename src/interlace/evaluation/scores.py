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

RESAMPLES = 2000


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
    """Return per-question outcomes from vlmeval's result files beside `<stem>.tsv`.

    Columns `question`, `value`, `weight`; the score is 100 * sum(value) / sum(weight). `questions`
    maps a row's index to its question: HR-Bench asks each one four times with its options rotated.
    """
    if dataset in ("ChartQA_TEST", "TextVQA_VAL"):
        table = _table(f"{stem}_results.tsv")
        matches = table["eval_match"].map(json.loads if dataset == "TextVQA_VAL" else _python_list)
        best = np.max if dataset == "ChartQA_TEST" else np.mean
        return _outcomes(table["index"], [float(best(match)) for match in matches], 1.0)
    if dataset == "POPE":
        return _pope(_table(f"{stem}_auxmatch.tsv"))
    if dataset == "MIA-Bench":
        table = _table(f"{stem}_{judge}.tsv")
        grades = map(total_grade, table["score_raw"], table["component_type"])
        return _outcomes(table["index"], list(grades), 1.0)
    if dataset == "OCRBench":
        return _ocr(stem)
    table = _table(f"{stem}_{judge}_result.tsv")
    if not dataset.startswith("HRBench"):
        return _outcomes(table["index"], table["hit"].astype(float), 1.0)
    # The score is the mean over the four rotations' accuracies, whatever their sizes.
    weight = 1.0 / table.groupby("cycle_category")["index"].transform("size")
    names = [questions[str(index)] for index in table["index"]]
    return _outcomes(names, table["hit"].astype(float) * weight, weight)


def _table(path: str) -> pd.DataFrame:
    return pd.read_csv(path, sep="\t", keep_default_na=False)


def _outcomes(question: object, value: object, weight: object) -> pd.DataFrame:
    return pd.DataFrame({"question": question, "value": value, "weight": weight})


def _python_list(text: str) -> list[float]:
    return [float(part in ("True", "1", "1.0")) for part in text.strip("[]").split(", ")]


def _ocr(stem: Path) -> pd.DataFrame:
    """OCRBench's evaluate() writes no hit per row, so it is asked about every row by itself."""
    from vlmeval.dataset.image_vqa import OCRBench
    from vlmeval.smp import load

    table = load(f"{stem}.tsv")
    hits = []
    with tempfile.TemporaryDirectory() as folder, contextlib.redirect_stderr(io.StringIO()):
        row = Path(folder) / "row.pkl"  # a pickle keeps the types that the whole table has
        for position in range(len(table)):
            table.iloc[[position]].to_pickle(row)
            hits.append(float(OCRBench.evaluate(str(row))["Final Score"]))
    return _outcomes(table["index"], hits, 1.0)


def _pope(table: pd.DataFrame) -> pd.DataFrame:
    """F1 = 2 tp / (2 tp + fp + fn); a row counts once per category that it names."""
    times = table["category"].astype(str).str.split(",").map(len)
    truth, said = table["answer"] == "Yes", table["extracted"] == "Yes"
    both = 2.0 * (truth & said) * times
    return _outcomes(table["index"], both, both + (truth ^ said) * times)


def total_grade(raw: object, component_type: object = None) -> float | None:
    """Return a MIA-Bench grade's total (0-1) as vlmeval reads it, or None where it drops the row.

    `component_type` is the row's column; without it any number of components is accepted.
    """
    from vlmeval.dataset.miabench import get_score_dict

    if component_type is None:
        names = [f"component {number}" for number in range(str(raw).count(",") + 1)]
        component_type = "['" + "', '".join(names) + "']"
    row = {"component_type": [str(component_type)]}
    return get_score_dict(pd.DataFrame(row), [str(raw)]).get("total_score")


def ratio(outcomes: pd.DataFrame) -> float:
    """Return the score (0-100) that outcomes add up to."""
    weight = outcomes["weight"].sum()
    return 100 * float(outcomes["value"].sum() / weight) if weight else 0.0


def bootstrap_interval(
    outcomes: pd.DataFrame, seed: int, resamples: int = RESAMPLES
) -> list[float]:
    """Return the 95 % percentile bootstrap interval of the score, resampling whole questions.

    A resample whose score is not defined (POPE without any yes, said or true) does not count.
    """
    by_question = outcomes.groupby("question", sort=True)[["value", "weight"]].sum()
    value, weight = by_question["value"].to_numpy(), by_question["weight"].to_numpy()
    rng = np.random.default_rng(seed)
    scores = []
    for _ in range(resamples):
        drawn = rng.integers(len(value), size=len(value))
        if total := weight[drawn].sum():
            scores.append(100 * value[drawn].sum() / total)
    low, high = np.percentile(scores or [0.0], [2.5, 97.5])
    return [float(low), float(high)]
