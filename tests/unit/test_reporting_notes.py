"""Notes say what was measured, not what the paper did."""

from interlace.reporting.layout import Cell, Column, Row, Table
from interlace.reporting.notes import (
    answer_notes,
    device_notes,
    few_notes,
    grader_notes,
    interval_notes,
    kernel_notes,
    token_notes,
)
from interlace.reporting.results import Results, Score, Timing, load_results
from tests.unit.reporting_results import write_score


def test_the_limits_on_new_tokens_are_the_results_own():
    scores = {
        ("m", "dense", "cot"): {"AI2D": Score(50.0, max_new_tokens=256)},
        ("m", "dense", "limited"): {"AI2D": Score(50.0, max_new_tokens=50)},
    }
    assert token_notes(Results(scores=scores)) == [
        "CoT: at most 256 new tokens, in the paper 16384.",
        "Limited: at most 50 new tokens, in the paper 50.",
    ]
    assert token_notes(Results()) == []


def test_the_kernels_of_sparse_variants_are_named():
    def results(**kernels):
        dense = {"kernels": "dense", "kernels_reason": "the weights are not 2:4 sparse"}
        return Results(
            timings={
                ("m", "wanda_2_4"): {
                    "AI2D": Timing(1.0, **kernels),
                    "POPE": Timing(1.0, **kernels),
                },
                ("m", "interlace-25-ft"): {"AI2D": Timing(1.3, **dense)},
            }
        )

    told = {"kernels": "dense", "kernels_reason": "there is no CUDA device"}
    assert kernel_notes(results(**told), "m") == [
        "TTFT of 2:4 variants: on dense kernels, which gain nothing from zeros (there is no CUDA "
        "device)."
    ]
    fast = {"kernels": "semi_structured", "kernels_reason": "252 weights"}
    assert kernel_notes(results(**fast), "m") == [
        "TTFT of 2:4 variants: on the semi-structured kernels of torch (252 weights)."
    ]
    assert kernel_notes(results(**told), "another") == []
    assert kernel_notes(results(), "m") == []  # timed before results said so


def test_the_answers_that_are_no_answers_are_named():
    def score(**shares):
        return Score(50.0, **shares)

    scores = {
        ("m", "random-25-ft", "cot"): {
            "AI2D": score(unparsed=0.031, empty=0.01, cut=0.25),
            "POPE": score(unparsed=0.2, empty=0.0),
            "VStar": score(cut=0.0101),
        },
        ("m", "dense", "limited"): {
            name: score(cut=share)
            for name, share in {"AI2D": 0.5, "POPE": 1, "VStar": 0.9, "ChartQA": 0.02}.items()
        },
    }
    models = {"m": {"label": "M"}, "n": {"label": "N"}}
    assert answer_notes(Results(scores=scores), models) == [
        "Above 1 % of the answers could not be parsed: Random 25 %, CoT: POPE 20 %, AI2D 3.1 %.",
        "Above 1 % of the answers were cut at the limit on new tokens: Dense, Limited: 4 benchmarks, "
        "most on POPE (100 %); Random 25 %, CoT: AI2D 25 %, VStar 1.01 %.",
    ]
    scores = {("m", "dense", "cot"): {"AI2D": score(empty=0.5)}, ("n", "dense", "cot"): {}}
    assert answer_notes(Results(scores=scores), models) == [
        "Above 1 % of the answers are empty: M Dense, CoT: AI2D 50 %."
    ]
    assert answer_notes(Results(), models) == []


def test_graders_and_their_prompts_are_named():
    scores = {
        ("m", variant, "cot"): {
            "MIABench": Score(50.0, grader="judge", prompt="p3"),
            "AI2D": Score(50.0, grader="judge", prompt="p3"),
            "POPE": Score(50.0, grader_kind="exact_matching"),
            "VStar": Score(50.0, grader="reader"),
        }
        for variant in ("dense", "dense-ft")
    }
    assert grader_notes(Results(scores=scores)) == [
        "Graded by judge, prompt p3: AI2D, MIABench.",
        "Graded by reader: VStar.",
    ]


def test_shares_come_from_the_results(tmp_path):
    grader = {"kind": "openai", "model": "judge", "unparsed_share": 0.25, "prompt": "p"}
    counts = {"num_samples": 50, "empty_predictions": 5, "finished_share": 0.9}
    file = write_score(tmp_path, "big", "dense", "cot", "AI2D", 50.0, grader=grader, **counts)
    (score,) = load_results([file]).values("big", "dense", "cot").values()
    assert (score.unparsed, score.empty) == (0.25, 0.1)
    assert abs(score.cut - 0.1) < 1e-12
    old = write_score(tmp_path, "big", "dense", "limited", "AI2D", 50.0, finished_share=None)
    (score,) = load_results([old]).values("big", "dense", "limited").values()
    assert (score.unparsed, score.empty, score.cut) == (None, None, None)


def test_few_questions_are_named():
    scores = {
        ("m", "dense", "cot"): {"AI2D": Score(50.0, 40.0, 60.0, 9), "POPE": Score(50.0, 4, 6, 10)}
    }
    assert few_notes(Results(scores=scores)) == [
        "Intervals are too narrow with fewer than 10 samples: 1 benchmark(s)."
    ]
    assert few_notes(Results(scores={("m", "dense", "cot"): {"AI2D": Score(50.0)}})) == []


def test_the_note_on_intervals_tells_their_kind():
    def table(number, low, key="a"):
        rows, columns = [Row("r", "r")], [Column(key, key)]
        return Table(number, "t", "c", columns, rows, {("r", key): Cell(1.0, low=low, high=low)})

    assert "2,000 resamples of the questions, seed 7" in interval_notes(table(1, 1.0), 7)[0]
    assert interval_notes(table(1, None), 7)[0].startswith("No interval: 1 of 1 numbers")
    assert interval_notes(table(2, None, "speed"), 7, measured={"speed"}) == []
    assert "over the timed samples" in interval_notes(table(4, 1.0), 7)[0]
    assert "over the timed samples" in interval_notes(table("TTFT", 1.0), 7)[0]
    assert interval_notes(table(4, None), 7) == []


def test_a_device_is_named_with_the_samples_where_they_are_known():
    def results(*counts):
        found = {str(i): Timing(1.0, device="H100", num_samples=n) for i, n in enumerate(counts)}
        return Results(timings={("m", "interlace-25-ft"): found})

    assert device_notes(results(None)) == ["TTFT of ours: on H100."]
    assert device_notes(results(6, 6)) == ["TTFT of ours: on H100, 6 samples per benchmark."]
    assert device_notes(results(60, 6)) == ["TTFT of ours: on H100, 6-60 samples per benchmark."]
