"""Predictions written by hand, with the credit that each has by VLMEvalKit's rules worked out by hand.

Every expected number is a literal; beside it stands why. Predictions are written and scored as
`evaluate()` does it.
"""

import base64
import io
import types

import pandas as pd
import pytest
from PIL import Image

from interlace.demo.grader import running_grader
from interlace.errors import InputError
from interlace.evaluation import grading, kit, predictor, run, scores, scoring
from interlace.evaluation.benchmarks import get_benchmark
from interlace.evaluation.outcomes import read_outcomes_file
from interlace.evaluation.prepare import prepare_benchmark
from interlace.io import read_json

FILLER = "so it is hard to say " * 4762  # 100,002 characters; holds no answer to anything below
WORST = ["", " ", "\n", "nan", "None", "NA", "N/A", "null"]  # empty once vlmeval has read the table


def _png() -> str:
    buffer = io.BytesIO()
    Image.new("RGB", (8, 8), "red").save(buffer, format="PNG")
    return base64.b64encode(buffer.getvalue()).decode()


PICTURE = _png()
COLOURS = {"A": "red", "B": "green", "C": "blue", "D": "yellow"}  # 18 letters


def ask(answer, **columns):
    return {"image": PICTURE, "question": "Which one?", "answer": answer, **columns}


def score(folder, name, rows, texts, grader=None):
    """Return the score of `texts` given to the questions `rows`, and each row's credit by index."""
    benchmark = get_benchmark(name)
    assert len(rows) == len(texts)
    table = pd.DataFrame([{"index": index, **row} for index, row in enumerate(rows)])
    table.to_csv(folder / f"{benchmark.dataset}.tsv", sep="\t", index=False)
    work = folder / "work"
    work.mkdir()
    with kit.kit_environment(folder):
        dataset = kit.build_benchmark(benchmark, None)
        run.write_predictions(dataset, texts, work / "predictions.tsv")
        graded = scoring.score_predictions(benchmark, dataset, work, grader)
        judge, stem = graded["judge"], work / "predictions"
        found = scores.read_score(benchmark.dataset, stem, len(texts), judge)
        questions = kit.question_ids(dataset.data).set_axis(dataset.data["index"].map(str))
        outcomes = scores.read_outcomes(benchmark.dataset, stem, questions, judge)
    assert scores.ratio(outcomes) == pytest.approx(found)
    return found, dict(zip(outcomes["index"].map(str), outcomes["hit"], strict=True))


def check_rows(folder, name, rows, texts, credits, total):
    """Check every row's credit, and a score of `total`."""
    found, hits = score(folder, name, rows, texts)
    wrong = {
        (number, texts[number][:40]): (hits[str(number)], credit)
        for number, credit in enumerate(credits)
        if hits[str(number)] != pytest.approx(credit)
    }
    assert not wrong, "(row, said): (found, expected)"
    assert found == pytest.approx(total)


# -- Multiple choice: AI2D, RealWorldQA, V*, ScienceQA ----------------------------------------------

FOUR = [ask(answer, **COLOURS) for answer in "ABCD"]


@pytest.mark.parametrize(
    ("texts", "expected"),
    [
        (["A", "B", "C", "D"], 100),
        (["B", "C", "D", "A"], 0),
        (["A", "B", "D", "C"], 50),  # the first two of four
        (["", "", "", ""], 0),  # the whole column is empty
        (["nan"] * 4, 0),
        (
            [FILLER + "A", FILLER + "B", FILLER + "C", FILLER + "A"],
            75,
        ),  # a letter at the end counts
        (["A " + FILLER, "B " + FILLER, "C " + FILLER, "D " + FILLER], 0),  # not far before it
        (["a", "b", "c", "d"], 0),  # letters are capitals
        (["red", "Green.", "it is blue", "YELLOW"], 100),  # the one option's text
    ],
    ids=["right", "wrong", "half", "empty", "nan", "long", "long start", "lower case", "texts"],
)
def test_choice(texts, expected, tmp_path):
    assert score(tmp_path, "AI2D", FOUR, texts)[0] == expected


@pytest.mark.parametrize("name", ["RealWorldQA", "VStar", "ScienceQA"])
def test_choices_of_the_same_kind(name, tmp_path):
    assert score(tmp_path, name, FOUR, ["A", "B", "D", "C"])[0] == 50


# (said, credit) where the answer is B, green.
SAID = [
    *[(text, 1) for text in ("B", "(B)", "B.", "[B]", "**B**", "B!", "Answer: B", "Answer:B")],
    *[(text, 1) for text in ("\tB\t", "\n\nB\n", "B\r\n", "B\u00a0", "答案是 B", "🟢 B")],
    ("I am sure it is B", 1),  # among the last four words
    ("The best answer here is B, I am sure of it", 0),  # not among them; too long for its text
    ("The answer is (B) or maybe C", 0),  # two letters
    ("A or B", 0),
    ("A green one", 0),  # the article counts as letter A
    ("D. green", 0),  # the letter comes before the text
    ("B. red", 1),
    ("red or green", 0),  # two texts
    ("greenish", 1),  # a substring
    ("green " * 6, 1),  # 36 characters, twice those of all options
    ("green " * 6 + "!", 0),  # 37: too long to be a text
    ('{"answer": "B"}', 0),  # quotes stay at the letter
    ("{answer: B}", 1),
    ('```json\n{"choice": "B"}\n```', 0),
    *[(text, 0) for text in ('B"', "'B'", "=B", "-B", "BB", "B。", "Ｂ", "В", "E", "Z", "5", "=5")],
    ("Cannot determine the answer, B", 0),  # counts as a refusal
    ("Failed to obtain answer via API. B", 0),
    *[(text, 0) for text in WORST],
    *[(text, 0) for text in ('"', '""', "\t", "\r", "\\", "\\N", "\x00", "#", "1,200", "True")],
    (FILLER + "B", 1),
    (FILLER + "The answer is B or C", 0),
    ("B " + FILLER, 0),
]
NUMBERS = {"A": 12, "B": 15, "C": 20}  # no option D; 6 digits
SAID_OF_NUMBERS = [("15", 1), ("15.0", 1), ("B", 1), ("12 15", 0), ("D", 0), ("20", 0), ("1,5", 0)]


def test_choice_row_by_row(tmp_path):
    rows = [ask("B", **COLOURS) for _ in SAID] + [ask("B", **NUMBERS) for _ in SAID_OF_NUMBERS]
    said = SAID + SAID_OF_NUMBERS
    # 20 of 63 of SAID are right, 3 of 7 of the numbers
    texts, credits = zip(*said, strict=True)
    check_rows(tmp_path, "AI2D", rows, list(texts), credits, 100 * 23 / 70)


def test_nothing_said_can_be_right_where_options_are_letters(tmp_path):
    """VLMEvalKit reads an empty cell as 'nan', in which it finds the option text 'a': a known trap."""
    rows = [ask(answer, A="a", B="b", C="c", D="d") for answer in "AABB"]
    found, hits = score(tmp_path, "AI2D", rows, ["", "nan", "", "B"])
    assert hits == {"0": 1, "1": 1, "2": 0, "3": 1}
    assert found == 75


# -- MMBench: all rotations of a question have to be right ------------------------------------------

ROTATED = ("red", "green", "blue", "yellow")


def _turned(turn):
    return dict(zip("ABCD", ROTATED[turn:] + ROTATED[:turn], strict=True))


def _mmbench():
    """Two questions in four rotations each: answers A D C B (red) and B A D C (green)."""
    return [
        {
            **ask(answer, **_turned(turn), hint=None, split="dev", category="color"),
            "l2-category": "attribute_reasoning",
            "index": question + turn * 1_000_000,
        }
        for question, answers in enumerate(("ADCB", "BADC"))
        for turn, answer in enumerate(answers)
    ]


@pytest.mark.parametrize(
    ("texts", "hits"),
    [
        ([*"ADCBBADC"], (1, 1)),
        ([*"BADCADCB"], (0, 0)),
        ([*"ADCBADCB"], (1, 0)),
        ([*"ADCABADC"], (0, 1)),  # three of four rotations: nothing
        ([*"ADCABADD"], (0, 0)),  # six of eight rows: nothing
        ([*"ADC", "", *"BADC"], (0, 1)),
        ([*"ADC", "b", *"BADC"], (0, 1)),
        ([*"ADC", "B or C", *"BADC"], (0, 1)),
        (["red"] * 4 + ["green"] * 4, (1, 1)),  # the same text is another letter each time
        (["A"] * 8, (0, 0)),  # always the first: one rotation of each
        ([""] * 8, (0, 0)),
        (["nan"] * 8, (0, 0)),
        ([FILLER + letter for letter in "ADCBBADD"], (1, 0)),
        (["(A)", "D.\n", "**C**", "\tB", "答案是 B", "A", "{D}", "=C"], (1, 0)),  # =C is none
    ],
)
def test_mmbench(texts, hits, tmp_path):
    found, by_question = score(tmp_path, "MMBench", _mmbench(), texts)
    assert by_question == {"0": hits[0], "1": hits[1]}
    assert found == 50 * sum(hits)


# -- HR-Bench: the mean over the rotations' accuracies ----------------------------------------------


def _hrbench():
    """Two questions in four rotations each, as in MMBench but every row counts."""
    return [
        ask(answer, **_turned(turn), category=kind, cycle_category=str(turn))
        for kind, answers in (("single", "ADCB"), ("cross", "BADC"))
        for turn, answer in enumerate(answers)
    ]


@pytest.mark.parametrize(
    ("texts", "expected"),
    [
        ([*"ADCBBADC"], 100),
        ([*"BADCADCB"], 0),
        ([*"ADCBADCB"], 50),
        ([*"ADCABADD"], 75),  # three of four of both questions
        ([*"ADCABADC"], 87.5),  # 7 of 8
        (["A"] * 8, 25),
        ([""] * 8, 0),
        (["nan"] * 8, 0),
        ([FILLER + letter for letter in "ADCBBADD"], 87.5),
        ([letter + " " + FILLER for letter in "ADCBBADC"], 0),
        (["(A)", "d", "red", "A or B", "B\n", "", '{"answer": "D"}', "=C"], 37.5),  # A, red, B
    ],
)
def test_hrbench(texts, expected, tmp_path):
    assert score(tmp_path, "HRBench4K", _hrbench(), texts)[0] == pytest.approx(expected)


def test_hrbench_of_the_other_size(tmp_path):
    assert score(tmp_path, "HRBench8K", _hrbench(), [*"ADCBABDD"])[0] == pytest.approx(62.5)


# -- POPE: F1 over rows that count once per category ------------------------------------------------

# Weights 3, 1, 2, 1: five of yes, two of no.
POPE = [
    ask("Yes", category="random,popular,adversarial"),
    ask("No", category="random"),
    ask("Yes", category="popular,adversarial"),
    ask("No", category="random"),
]


@pytest.mark.parametrize(
    ("texts", "expected"),
    [
        (["Yes", "No", "Yes", "No"], 100),
        (["No", "Yes", "No", "Yes"], 0),
        (["Yes"] * 4, 83.33333333),  # tp 5, fp 2, fn 0: 2*5 / (2*5 + 2)
        (["No"] * 4, 0),  # tp 0
        (["Yes", "No", "No", "No"], 75),  # tp 3, fn 2: 6 / (6 + 2)
        (["Yes", "Yes", "No", "No"], 66.66666667),  # tp 3, fp 1, fn 2: 6 / (6 + 1 + 2)
        (["No", "Yes", "Yes", "Yes"], 44.44444444),  # tp 2, fp 2, fn 3: 4 / (4 + 2 + 3)
        (["yes", "no", "YES!!!", "no."], 100),
        (["Yes, no", "No", "yes yes yes", "no no"], 57.14285714),  # tp 2, fn 3: 4 / (4 + 3)
        (["Yes/No", "", "Yes", "nan"], 57.14285714),  # neither is not yes: tp 2, fn 3
        (["", "Yes and no", "", "maybe"], 0),
        ([""] * 4, 0),
        (["nan"] * 4, 0),
        (['{"answer": "yes"}', "No", "\tYes\n", "No"], 100),
        (["**Yes**", "No", "Yes", "No"], 57.14285714),  # the asterisks stay at the word
        (["Yes, there is.", "There is none", "It is there", "No, not here"], 75),  # tp 3, fn 2
        (["Да", "いいえ", "Yes\u00a0", "No"], 57.14285714),
        (["Yes " + FILLER, "No", FILLER + "yes", "No"], 100),  # anywhere in the text
        (["Yes " + FILLER + "no", "No", FILLER + "yes", "No"], 57.14285714),
    ],
)
def test_pope(texts, expected, tmp_path):
    assert score(tmp_path, "POPE", POPE, texts)[0] == pytest.approx(expected)


# -- ChartQA: relaxed accuracy, 5 % of a number -----------------------------------------------------

CHART = [
    ask(answer, split=split)
    for answer, split in (
        ("100", "test_human"),
        ("12.5", "test_augmented"),
        ("Brazil", "test_human"),
        ("1200", "test_augmented"),
        ("8%", "test_human"),
        ("0", "test_augmented"),
    )
]


@pytest.mark.parametrize(
    ("texts", "credits"),
    [
        (["100", "12.5", "Brazil", "1200", "8%", "0"], (1, 1, 1, 1, 1, 1)),
        (["1", "2", "Peru", "3", "4", "5"], (0, 0, 0, 0, 0, 0)),
        (["100", "2", "Brazil", "3", "8%", "5"], (1, 0, 1, 0, 1, 0)),
        # 5 %, 4.8 %, case, 4.2 %, 3.75 % off; zero as a text
        (["105", "11.9", "bRAZIL", "1250", "8.3%", "0"], (1, 1, 1, 1, 1, 1)),
        # 5.1 %, 5.6 %, 8.3 %, 12.5 % off; beside zero there is no relative change
        (["105.1", "13.2", "Brasil", "1100", "9%", "0.0"], (0, 0, 0, 0, 0, 0)),
        # no thousands, no decimal comma, no full stop; 8% is 0.08
        (["100.0", "12,5", "Brazil.", "1,200", "0.08", "0%"], (1, 0, 0, 0, 1, 0)),
        (["=100", "=12.5", "=Brazil", "$1200", "8", "-0"], (0, 0, 0, 0, 0, 0)),
        ([" 100 ", "\t12.5\n", "Brazil\r\n", "1.2e3", "8.0%", "0 "], (1, 1, 1, 1, 1, 1)),
        # words beside it are too much; a blank before % is not
        (
            ["100 dollars", "about 12.5", "It is Brazil", "1200\n1300", "8 %", "zero"],
            (0, 0, 0, 0, 1, 0),
        ),
        (['"100"', "12.5; 13", '{"answer": "Brazil"}', "1 200", "8%%", "O"], (0, 0, 0, 0, 1, 0)),
        (["nan", "inf", "Brésil", "１２００", "-8%", "None"], (0, 0, 0, 1, 0, 0)),  # wide digits
        ([""] * 6, (0,) * 6),
        (["nan"] * 6, (0,) * 6),
        (
            [FILLER + "100", "12.5" + "0" * 100_000, FILLER + "Brazil", FILLER, "", ""],
            (0, 1) + (0,) * 4,
        ),
    ],
)
def test_chartqa(texts, credits, tmp_path):
    check_rows(tmp_path, "ChartQA", CHART, texts, credits, 100 * sum(credits) / 6)


def test_a_column_of_numbers_alone_is_read_as_numbers(tmp_path):
    """pandas guesses the type of a whole column: '0' beside 12.5 comes back as '0.0', no zero."""
    texts = ["100", "12.5", "7", "1200", "0.08", "0"]
    check_rows(tmp_path, "ChartQA", CHART, texts, (1, 1, 0, 1, 1, 0), 66.66666667)


# -- TextVQA: ten people answered -------------------------------------------------------------------

TEXT = [
    ask(str(answers))
    for answers in (
        ["stop"] * 10,
        ["coca cola"] * 4 + ["coke"] * 3 + ["cola"] * 2 + ["pepsi"],
        ["2"] * 10,
        ["the yankees"] * 3 + ["Yankees"] * 7,
        ["none"] * 10,
    )
]


@pytest.mark.parametrize(
    ("texts", "credits"),
    [
        (["stop", "coca cola", "2", "yankees", "none"], (1, 1, 1, 1, 1)),
        (["go", "water", "3", "mets", "some"], (0, 0, 0, 0, 0)),
        (["stop", "water", "2", "mets", "some"], (1, 0, 1, 0, 0)),
        # 3 of 10: leaving each person out, 3 times 2/3 and 7 times 1
        (["stop", "coke", "2", "yankees", "none"], (1, 0.9, 1, 1, 1)),
        # 2 of 10: 2 times 1/3 and 8 times 2/3; two is 2, articles go, zero is none
        (["Stop!", "cola", "two", "The Yankees", "zero"], (1, 0.6, 1, 1, 1)),
        # 1 of 10: once 0 and 9 times 1/3
        (["STOP.", "Pepsi", '"2"', "a yankees\n", "0"], (1, 0.3, 1, 1, 1)),
        # a hyphen is a blank, a full stop after a digit stays, None is read 'nan'
        (["stop sign", "coca-cola", "2.", "yan kees", "None"], (0, 1, 0, 0, 0)),
        (["s t o p", "coke or cola", "2 2", "\tYankees\t", "no one"], (0, 0, 0, 1, 0)),
        (['{"answer": "stop"}', "=coke", "=2", "YANKEES\r\n", "nan"], (0, 0.9, 1, 1, 0)),
        (["ｓtop", "coça cola", "２", "янкис", "無"], (0,) * 5),
        ([""] * 5, (0,) * 5),
        (["nan"] * 5, (0,) * 5),
        (["stop " + FILLER, FILLER + "coke", FILLER, FILLER + "yankees", "none"], (0, 0, 0, 0, 1)),
    ],
)
def test_textvqa(texts, credits, tmp_path):
    check_rows(tmp_path, "TextVQA", TEXT, texts, credits, 100 * sum(credits) / 5)


# -- OCRBench: an answer is in the prediction -------------------------------------------------------

FORMULA = "Handwritten Mathematical Expression Recognition"
OCR = [
    ask(str(answers), category=category)
    for answers, category in (
        (["CENTRE"], "Regular Text Recognition"),
        (["Main St", "1 Main Street"], "Scene Text-centric VQA"),
        (["0451"], "Digit String Recognition"),
        (["x ^ { 2 } + 1"], FORMULA),
        (["$1,200.00"], "Key Information Extraction"),
    )
]


@pytest.mark.parametrize(
    ("texts", "credits"),
    [
        (["CENTRE", "Main St", "0451", "x ^ { 2 } + 1", "$1,200.00"], (1, 1, 1, 1, 1)),
        (["CENTER", "Main", "451", "x ^ { 3 } + 1", "$1200.00"], (0, 0, 0, 0, 0)),
        (["CENTRE", "Main", "0451", "x", "$1,200.00"], (1, 0, 1, 0, 1)),
        # substrings, case and line breaks do not matter; in a formula no space does
        (["It says centre.", "1 MAIN\nSTREET", "00451x", "so x^{2}+1\n", "of $1,200.00"], (1,) * 5),
        (["CEN TRE", "Main  St", "0 451", "X^{2}+1", "$1 200.00"], (0,) * 5),  # formulas: case does
        (["<centre>", '{"answer": "main st"}', "=0451", "=x^{2}+1", "\t$1,200.00\t"], (1,) * 5),
        (["СENTRE", "Ｍain St", "०४५१", "x²+1", "€1,200.00"], (0,) * 5),  # other alphabets
        ([""] * 5, (0,) * 5),
        (["nan"] * 5, (0,) * 5),
        (["centre " + FILLER, FILLER + "main st", FILLER, FILLER + "x^{2}+1", ""], (1, 1, 0, 1, 0)),
    ],
)
def test_ocrbench(texts, credits, tmp_path):
    check_rows(tmp_path, "OCRBench", OCR, texts, credits, 20 * sum(credits))


def test_ocrbench_has_two_traps_with_tables(tmp_path):
    """An empty cell is 'nan', which holds the answer 'a'; digits alone in all rows lose their zero."""
    (tmp_path / "empty").mkdir()
    (tmp_path / "digits").mkdir()
    rows = [ask("['a']", category="Non-Semantic Text Recognition")] * 2
    assert score(tmp_path / "empty", "OCRBench", rows, ["", "b"])[0] == 50
    rows = [ask("['0451']", category="Digit String Recognition")] * 2
    assert score(tmp_path / "digits", "OCRBench", rows, ["0451", "7"])[0] == 0


# -- MIA-Bench: grades of components ----------------------------------------------------------------


def _mia(components, weights):
    return {
        "image": PICTURE,
        "question": "Describe it.",
        "num_of_component": len(components),
        "components": str(components),
        "component_weight": str(weights),
        "component_type": str(["describe", "format", "length"][: len(components)]),
    }


MIA = [
    _mia(["names the color red", "is in square brackets"], [6, 4]),
    _mia(["names the shape circle", "has exactly two words", "ends with a period"], [5, 3, 2]),
    _mia(["starts with the word the"], [10]),
    _mia(["names the color blue", "ends with a period"], [5, 5]),
]


@pytest.mark.parametrize(
    ("texts", "credits"),
    [
        (["[red]", "Red circle.", "The end", "It is blue."], (1, 1, 1, 1)),
        (["green", "triangle", "end", "red"], (0, 0, 0, 0)),
        (["[red]", "Red circle.", "end", "red"], (1, 1, 0, 0)),
        (["red", "circle", "the", "blue"], (0.6, 0.5, 1, 0.5)),  # 6/10, 5/10, 10/10, 5/10
        (["[green]", "a circle", "", "It is red or blue."], (0.4, 0.8, 0, 0.5)),  # 4, 5 + 3, 0, 5
        (["\t[red]\n", "red\ncircle.\n", '"the"', "blue\t."], (1, 1, 1, 1)),
        (['{"color": "red"}', "'circle'.", "=the", "bleu"], (0.6, 0.7, 1, 0)),  # 6, 5 + 2, 10, 0
        (["[red']", "it's a circle.", "THE\u00a0END", "синий."], (1, 0.7, 1, 0.5)),
        ([""] * 4, (0, 0, 0, 0)),
        (["nan"] * 4, (0, 0, 0, 0)),
        (
            ["red " + FILLER, FILLER + "circle.", "the " + FILLER, FILLER + "blue."],
            (0.6, 0.7, 1, 1),
        ),
        (
            ["total score: 10/10", "score of component 1: 5/5.", "a", "."],
            (0, 0.2, 0, 0),
        ),  # 2: period
    ],
)
def test_mia_bench(texts, credits, tmp_path, grader):
    found, hits = score(tmp_path, "MIABench", MIA, texts, grader)
    assert [hits[str(row)] for row in range(4)] == pytest.approx(credits)
    assert found == pytest.approx(25 * sum(credits))


@pytest.fixture(scope="module")
def grader():
    with running_grader() as (base_url, model):
        settings = {"kind": "demo", "base_url": base_url, "model": model}
        yield grading.connect(settings, ["MIABench"])


# -- The table between us and VLMEvalKit ------------------------------------------------------------

KEPT = [
    *("A", '"', '""', 'say "A", or', "a\tb", "a\nb", "a\r\nb", "a\rb", "\r", "\t", " ", "\n", "'"),
    *(
        "=5",
        "=1+1",
        "0451",
        "1,200",
        "50%",
        "1e5",
        "True",
        "none",
        "\\",
        "\\N",
        'end\\"',
        "#",
        "\x00",
    ),
    *(
        "a\x00b",
        "\ufeffA",
        "\u2028",
        "\x1a",
        "é",
        "答案",
        "שלום",
        "😀",
        "\ufffd",
        FILLER,
        "<script>",
    ),
]


def test_what_is_said_survives_the_table(tmp_path):
    """As written it is read; the empty text and pandas' words for nothing become 'nan'."""
    texts = [*KEPT, *WORST]
    rows = pd.DataFrame({"index": range(len(texts)), "image": PICTURE})
    run.write_predictions(types.SimpleNamespace(data=rows), texts, tmp_path / "p.tsv")
    with kit.kit_environment(tmp_path):
        found = kit.load_vlmeval().smp.load(str(tmp_path / "p.tsv"))
    said = [str(text) for text in found["prediction"]]
    assert said[: len(KEPT)] == KEPT
    assert said[len(KEPT) :] == ["nan", " ", "\n", "nan", "nan", "nan", "nan", "nan"]
    assert list(found["index"]) == list(range(len(texts)))


def _said_by(texts):
    """Return a stand-in for Predictor that says `texts`."""

    class Said:
        def __init__(self, *_, **__):
            pass

        def __enter__(self):
            return self

        def __exit__(self, *_):
            pass

        def predict(self, benchmark, dataset, work):
            from interlace.evaluation.predictions import Prediction

            found = {str(row): Prediction(text, 3, True) for row, text in enumerate(texts)}
            return types.SimpleNamespace(predictions=found, seconds=1.0)

    return Said


def test_empty_predictions_are_counted_and_what_was_said_is_kept(tmp_path, monkeypatch):
    """The table cannot tell '' from 'nan': the count is taken, and the text kept, before it."""
    texts = ["A", "", " \n", "nan", "None", '<script>"\t\n', "=5", "A"]
    rows = [{"index": i, **ask("A", **COLOURS)} for i in range(len(texts))]
    (tmp_path / "tsv").mkdir()
    pd.DataFrame(rows).to_csv(tmp_path / "tsv" / "AI2D_TEST.tsv", sep="\t", index=False)
    prepare_benchmark("AI2D_TEST", tmp_path / "lmu", str(tmp_path / "tsv"))
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "model.safetensors").write_bytes(b"weights")
    monkeypatch.setattr(predictor, "Predictor", _said_by(texts))
    run.evaluate(
        tmp_path / "model",
        ["AI2D"],
        tmp_path / "lmu",
        tmp_path / "out",
        {"modes": {"limited": 8}, "grader": {"kind": "none"}},
        model="tiny",
        variant="dense",
        mode="limited",
        seed=0,
    )
    result = read_json(tmp_path / "out" / "AI2D.json")
    assert (result["score"], result["empty_predictions"]) == (25, 2)  # 2 of 8; '' and blanks
    outcomes = read_outcomes_file(tmp_path / "out" / "AI2D.parquet").set_index("index")
    assert [outcomes["prediction"][str(row)] for row in range(8)] == texts
    assert [bool(outcomes["empty"][str(row)]) for row in range(8)] == [0, 1, 1, 0, 0, 0, 0, 0]
    assert [outcomes["hit"][str(row)] for row in range(8)] == [1, 0, 0, 0, 0, 0, 0, 1]


def test_a_grader_that_grades_nothing_ends_the_evaluation(tmp_path, grader):
    """The demo's grader refuses a component that it has no rule for: no score without a grade."""
    rows = [*MIA[:1], _mia(["is a poem about the picture"], [10])]
    with pytest.raises(InputError, match=r"1 of 2 rows .*\(index 1\): HTTP 400: no rule"):
        score(tmp_path, "MIABench", rows, ["[red]", "Roses are red"], grader)
