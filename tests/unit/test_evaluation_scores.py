"""vlmeval scores predictions written by hand; what we read is the known result."""

import json

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from interlace.errors import InputError
from interlace.evaluation import kit, scores
from interlace.evaluation.prepare import prepare_benchmarks
from tests.tiny_benchmarks import DATASETS, make_tiny_benchmarks

SCORED = [dataset for dataset in DATASETS if dataset != "MIA-Bench"]


@pytest.fixture(scope="module")
def data_root(tmp_path_factory):
    root = tmp_path_factory.mktemp("scores")
    make_tiny_benchmarks(root / "tsv", questions=4)
    prepare_benchmarks(DATASETS, root / "lmu", str(root / "tsv"))
    return root / "lmu"


def right_answer(dataset, row):
    if dataset in ("TextVQA_VAL", "OCRBench"):
        return json.loads(row["answer"].replace("'", '"'))[0]
    return row["answer"]


def score(dataset, data_root, folder, answers):
    """Score `answers`, a function of (row number, right answer); return score and outcomes."""
    stem = folder / "predictions"
    with kit.kit_environment(data_root), kit.scoring_patches():
        built = kit.build_dataset(dataset)
        table = built.data.drop(columns="image")
        table["prediction"] = [
            answers(number, right_answer(dataset, row))
            for number, (_, row) in enumerate(table.iterrows())
        ]
        table.to_csv(f"{stem}.tsv", sep="\t", index=False)
        built.evaluate(f"{stem}.tsv", model="exact_matching", nproc=1)
        rotations = 4 if dataset.startswith("HRBench") else 1
        questions = pd.Series(
            [number // rotations for number in range(len(table))], index=table["index"].map(str)
        )
        return (
            scores.read_score(dataset, stem, len(table)),
            scores.read_outcomes(dataset, stem, questions),
        )


@pytest.mark.parametrize("dataset", SCORED)
def test_right_wrong_and_useless_answers(dataset, data_root, tmp_path):
    wrong = {"Yes": "No", "No": "Yes", "A": "B", "B": "C", "C": "D", "D": "A"}
    cases = {
        "right": (lambda _, answer: answer, 100),
        "wrong": (lambda _, answer: wrong.get(answer, "purple"), 0),
        "empty": (lambda *_: "", 0),
        "nan": (lambda *_: "nan", 0),
        "long": (lambda *_: "so it is not clear to me " * 4000, 0),
    }
    for name, (answers, expected) in cases.items():
        (tmp_path / name).mkdir()
        found, outcomes = score(dataset, data_root, tmp_path / name, answers)
        assert found == pytest.approx(expected), name
        assert scores.ratio(outcomes) == pytest.approx(found)
        assert scores.bootstrap_interval(outcomes, seed=0) == [expected, expected]


@pytest.mark.parametrize("dataset", SCORED)
def test_some_answers_right(dataset, data_root, tmp_path):
    """The first question (of four) wrong; MMBench and HR-Bench have four rows for each."""
    rows = 4 if dataset.startswith(("MMBench", "HRBench")) else 1
    if dataset == "MMBench_DEV_EN_V11":
        # one rotation wrong: the whole question counts as wrong
        found, outcomes = score(
            dataset, data_root, tmp_path, lambda number, answer: "Z" if number == 1 else answer
        )
        assert found == 75
    else:
        found, outcomes = score(
            dataset, data_root, tmp_path, lambda number, answer: "?" if number < rows else answer
        )
        # POPE: one of two yes missed, weighted by its three categories: tp 3, fn 3
        assert found == pytest.approx(100 * 2 * 3 / (2 * 3 + 3) if dataset == "POPE" else 75)
    assert scores.ratio(outcomes) == pytest.approx(found)
    low, high = scores.bootstrap_interval(outcomes, seed=0)
    assert 0 <= low < found < high <= 100


def test_two_splits_have_no_single_score(tmp_path):
    pd.DataFrame({"split": ["a", "b"], "Overall": [0.1, 0.2]}).to_csv(tmp_path / "p_acc.csv")
    with pytest.raises(InputError, match=r"AI2D_TEST\.tsv: column split has 2 values"):
        scores.read_score("AI2D_TEST", tmp_path / "p", 2)


def test_grades_are_read_as_vlmeval_reads_them():
    text = "score of component 1: 3/6, score of component 2: 1/4, total score: 4/10. Because."
    assert scores.total_grade(text, "['a', 'b']") == pytest.approx(0.4)
    assert scores.total_grade(text) == pytest.approx(0.4)
    for bad in ("", "nan", "I cannot.", "total score: 4/10, score", "total score: four/ten, a: 1"):
        assert scores.total_grade(bad) is None, bad


outcome_lists = st.lists(
    st.tuples(st.integers(0, 9), st.floats(0, 1), st.floats(0.1, 2)), min_size=1, max_size=30
)


@given(outcome_lists, st.integers(0, 2**31))
def test_interval_lies_within_the_outcomes_and_is_reproducible(rows, seed):
    outcomes = pd.DataFrame(rows, columns=["question", "value", "weight"])
    outcomes["value"] *= outcomes["weight"]
    low, high = scores.bootstrap_interval(outcomes, seed, resamples=50)
    by_question = outcomes.groupby("question").sum()
    ratios = 100 * by_question["value"] / by_question["weight"]
    assert ratios.min() - 1e-9 <= low <= high <= ratios.max() + 1e-9
    assert [low, high] == scores.bootstrap_interval(outcomes, seed, resamples=50)


def test_interval_has_the_width_of_a_proportions():
    outcomes = pd.DataFrame({"question": range(400), "value": [0.0, 1.0] * 200, "weight": 1.0})
    low, high = scores.bootstrap_interval(outcomes, seed=1)
    half = 100 * 1.96 * np.sqrt(0.25 / 400)
    assert low == pytest.approx(50 - half, abs=1)
    assert high == pytest.approx(50 + half, abs=1)
    # the four rotations of a question stand or fall together: a wider interval
    outcomes["question"] = outcomes.index // 4
    outcomes["value"] = (outcomes["question"] % 2).astype(float)
    wide_low, wide_high = scores.bootstrap_interval(outcomes, seed=1)
    assert wide_high - wide_low > 1.5 * (high - low)
