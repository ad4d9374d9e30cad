"""vlmeval scores predictions written by hand; what we read is the known result."""

import pandas as pd
import pytest

from interlace.errors import InputError
from interlace.evaluation import kit, scores
from interlace.evaluation.prepare import prepare_benchmarks
from tests.tiny_benchmarks import make_tiny_benchmarks

SCORED = ("AI2D_TEST", "MMBench_DEV_EN_V11", "HRBench4K", "TextVQA_VAL")


@pytest.fixture(scope="module")
def data_root(tmp_path_factory):
    root = tmp_path_factory.mktemp("scores")
    make_tiny_benchmarks(root / "tsv", questions=4, datasets=SCORED)
    prepare_benchmarks(SCORED, root / "lmu", str(root / "tsv"))
    return root / "lmu"


def score(dataset, data_root, folder, answers):
    """Score `answers`, a function of (row number, right answer); return score and outcomes."""
    stem = folder / "predictions"
    with kit.kit_environment(data_root), kit.scoring_patches(folder):
        built = kit.build_dataset(dataset)
        table = built.data.drop(columns="image")
        table["prediction"] = [
            answers(number, row["answer"]) for number, (_, row) in enumerate(table.iterrows())
        ]
        table.to_csv(f"{stem}.tsv", sep="\t", index=False)
        built.evaluate(f"{stem}.tsv", model="exact_matching", nproc=1)
        rotations = 4 if dataset.startswith("HRBench") else 1
        questions = pd.Series(
            [f"q{number // rotations}" for number in range(len(table))],
            index=table["index"].map(str),
        )
        return (
            scores.read_score(dataset, stem, len(table)),
            scores.read_outcomes(dataset, stem, questions),
        )


def test_two_splits_have_no_single_score(tmp_path):
    pd.DataFrame({"split": ["a", "b"], "Overall": [0.1, 0.2]}).to_csv(tmp_path / "p_acc.csv")
    with pytest.raises(InputError, match=r"AI2D_TEST\.tsv: column split has 2 values"):
        scores.read_score("AI2D_TEST", tmp_path / "p", 2)


def test_grades_are_read_as_vlmeval_reads_them():
    text = "score of component 1: 3/6, score of component 2: 1/4, total score: 4/10. Because."
    assert scores.total_grade(text, "['a', 'b']") == pytest.approx(0.4)
    for bad in ("", "nan", "I cannot.", "total score: 4/10, score", "total score: four/ten, a: 1"):
        assert scores.total_grade(bad, "['a', 'b']") is None, bad


def test_mmbench_has_an_outcome_per_question_and_hrbench_one_per_rotation(data_root, tmp_path):
    def odd(number, answer):
        return answer if number % 4 != 3 else "?"  # the last rotation of every question

    for dataset, rows, hits in (("MMBench_DEV_EN_V11", 4, [0, 0, 0, 0]), ("HRBench4K", 16, None)):
        (tmp_path / dataset).mkdir()
        found, outcomes = score(dataset, data_root, tmp_path / dataset, odd)
        assert len(outcomes) == rows
        assert outcomes["question"].nunique() == 4
        assert list(outcomes["hit"]) == (hits or [1, 1, 1, 0] * 4)
        assert found == scores.ratio(outcomes) == (0 if hits else 75)
    assert list(outcomes["index"]) == [str(number) for number in range(16)]
    # its four rotations weigh the same in sum, so a row weighs 1 / rows of its rotation
    assert set(outcomes["weight"]) == {0.25}


def test_mmbench_keeps_the_index_of_the_first_rotation(data_root, tmp_path):
    _, outcomes = score(
        "MMBench_DEV_EN_V11",
        data_root,
        tmp_path,
        lambda number, answer: "Z" if number == 5 else answer,
    )
    assert dict(zip(outcomes["index"], outcomes["hit"], strict=True)) == {
        "0": 1,
        "1": 0,
        "2": 1,
        "3": 1,
    }


def test_questions_differ_by_index_and_by_what_is_asked(data_root, tmp_path):
    """The same row of another TSV is another question: it must not be paired with this one."""
    _, outcomes = score("AI2D_TEST", data_root, tmp_path, lambda _, answer: answer)
    stem = tmp_path / "predictions"
    index = outcomes["index"]
    same, other = (
        scores.read_outcomes("AI2D_TEST", stem, pd.Series(text, index=index))
        for text in ("the same for all", "something else")
    )
    assert same["question"].nunique() == len(same)
    assert not set(same["question"]) & set(other["question"])


def test_textvqa_gives_credit_for_part_of_the_answers(data_root, tmp_path):
    with kit.kit_environment(data_root), kit.scoring_patches(tmp_path):
        built = kit.build_dataset("TextVQA_VAL")
        table = built.data.drop(columns="image").assign(prediction="red")
        # how many of ten people said red -> VQA accuracy, the mean over leaving one person out
        table["answer"] = [str(["red"] * n + ["blue"] * (10 - n)) for n in (0, 1, 2, 3)]
        table.to_csv(tmp_path / "predictions.tsv", sep="\t", index=False)
        built.evaluate(str(tmp_path / "predictions.tsv"), model="exact_matching")
    outcomes = scores.read_outcomes(
        "TextVQA_VAL", tmp_path / "predictions", pd.Series("", index=table["index"].map(str))
    )
    assert list(outcomes["hit"]) == pytest.approx([0, 0.3, 0.6, 0.9])
    assert scores.ratio(outcomes) == pytest.approx(
        scores.read_score("TextVQA_VAL", tmp_path / "predictions", 4), abs=1e-6
    )


def test_ocrbench_tells_its_hits_row_by_row(tmp_path):
    """Five rows a call, read as binary digits: the same as one call a row, whatever the number."""
    kit.load_vlmeval()
    from vlmeval.dataset.image_vqa import OCRBench

    kinds = ("Regular Text Recognition", "Handwritten Mathematical Expression Recognition")
    said = ["red", "nan", "", "7", "x ^ 2", "BLUE!", "None", "2", "red", "a\nb", "12"]
    truth = ["red", "nan", "7", "7", "x^2", "blue", "none", "x", "blue", "a b", "1"]
    table = pd.DataFrame(
        {
            "index": range(11),
            "answer": [str([answer]) for answer in truth],
            "category": [kinds[number == 4] for number in range(11)],
            "prediction": said,
        }
    )
    stem = tmp_path / "predictions"
    for rows in (1, 5, 11):
        part = table.iloc[:rows]
        part.to_csv(f"{stem}.tsv", sep="\t", index=False)
        total = OCRBench.evaluate(f"{stem}.tsv")["Final Score"]
        asked = pd.Series("", index=part["index"].map(str))
        outcomes = scores.read_outcomes("OCRBench", stem, asked)
        assert outcomes["hit"].sum() == total
        assert scores.ratio(outcomes) == scores.read_score("OCRBench", stem, rows)
    assert list(outcomes["hit"]) == [1, 1, 0, 1, 1, 1, 0, 0, 0, 1, 1]


def test_pope_counts_a_row_once_per_category(tmp_path):
    kit.load_vlmeval()
    from vlmeval.dataset.utils.yorn import POPE_rating

    rows = [("Yes", "Yes", "random,popular"), ("Yes", "No", "random"), ("No", "Yes", "popular")]
    rows += [("No", "No", "random,popular,adversarial"), ("Yes", "Unknown", "random")]
    table = pd.DataFrame(rows, columns=["answer", "extracted", "category"])
    table.insert(0, "index", range(5))
    table["score"] = table["answer"] == table["extracted"]
    stem = tmp_path / "predictions"
    table.to_csv(f"{stem}_auxmatch.tsv", sep="\t", index=False)
    POPE_rating(f"{stem}_auxmatch.tsv").to_csv(f"{stem}_score.csv", index=False)
    asked = pd.Series("", index=table["index"].map(str))
    outcomes = scores.read_outcomes("POPE", stem, asked)
    assert list(outcomes["hit"]) == [1, 0, 0, 1, 0]
    assert scores.ratio(outcomes) == pytest.approx(100 * 4 / (4 + 1 + 1 + 1))
    assert scores.ratio(outcomes) == pytest.approx(scores.read_score("POPE", stem, 5), abs=1e-6)


def test_a_grade_that_cannot_be_read_has_no_weight(tmp_path):
    kit.load_vlmeval()
    from vlmeval.dataset.miabench import get_score_dict

    raw = [
        "score of component 1: 3/6, score of component 2: 1/4, total score: 4/10. Because.",
        "I like the picture.",
        "score of component 1: 6/6, score of component 2: 4/4, total score: 9/9.",
    ]
    table = pd.DataFrame({"index": range(3), "score_raw": raw, "component_type": "['a', 'b']"})
    stem = tmp_path / "predictions"
    table.to_csv(f"{stem}_grader.tsv", sep="\t", index=False)
    results = get_score_dict(table, table["score_raw"])
    pd.DataFrame(list(results.items())).to_csv(f"{stem}_grader_score.csv", index=False)
    asked = pd.Series("", index=table["index"].map(str))
    outcomes = scores.read_outcomes("MIA-Bench", stem, asked, "grader")
    assert list(outcomes["weight"]) == [1, 0, 1]
    assert list(outcomes["value"]) == pytest.approx([0.4, 0, 1])
    assert list(outcomes["hit"].isna()) == [False, True, False]
    found = scores.read_score("MIA-Bench", stem, 3, "grader")
    assert scores.ratio(outcomes) == pytest.approx(found, abs=1e-6)
