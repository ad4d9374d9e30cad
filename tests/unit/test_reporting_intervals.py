"""Intervals of tables: paired, from the outcomes beside the results, written where they are asked for."""

import csv
import io
import json
from dataclasses import replace
from pathlib import Path

import numpy
import pandas
import pytest

from interlace.errors import InputError
from interlace.evaluation.intervals import resampled_scores
from interlace.reporting import render
from interlace.reporting.figure_finetuning import changes_of_results
from interlace.reporting.layout import Table
from interlace.reporting.paper import load_paper
from interlace.reporting.resamples import Resampler
from interlace.reporting.results import load_results
from interlace.reporting.tables import make_table
from tests.unit.reporting_results import EXPERIMENTS, MODELS, shared_run, write_hits, write_score

PAPER = load_paper()
MAIN = "interlace-25-ft"


@pytest.fixture(scope="module")
def run(tmp_path_factory) -> list[Path]:
    return shared_run(tmp_path_factory.getbasetemp())


@pytest.fixture(scope="module")
def tables(run) -> dict[int, Table]:
    return {number: table_of(number, run) for number in (1, 2, 3, 5, 6)}


def table_of(number, files, **options):
    return make_table(number, load_results(files), PAPER, MODELS, EXPERIMENTS, **options)


def cell(table, row, column):
    return table.cells[row, column]


def of(files, model, variant, mode="cot"):
    """Benchmark -> outcomes as pandas reads them, without this package."""
    found = [f for f in files if f.parts[-5] == model and f.parts[-3:-1] == (variant, mode)]
    return {f.stem: pandas.read_parquet(f.with_suffix(".parquet")) for f in found}


def resampled(outcomes, seed=0):
    return {name: resampled_scores(table, seed, name) for name, table in outcomes.items()}


def percentiles(values):
    return pytest.approx(tuple(numpy.percentile(values, [2.5, 97.5])), abs=1e-9)


def bounds(found):
    return found.low, found.high


# -- what they are --------------------------------------------------------------------------------


def test_two_questions_by_hand(tmp_path):
    dense = write_hits(tmp_path, "big", "dense", "cot", "AI2D", [1, 1])
    pruned = write_hits(tmp_path, "big", MAIN, "cot", "AI2D", [1, 0])
    found = cell(table_of(1, [dense, pruned]), "AI2D", "big 25")
    # A resample holds the first question twice, both, or the second twice: 1/4, 1/2, 1/4.
    assert (found.ours, *bounds(found)) == (50.0, 0.0, 100.0)


def test_a_model_that_answers_like_dense_keeps_all_of_it(tmp_path):
    """Paired: whatever is drawn, the ratio is 100. Unpaired, it would vary as the scores do."""
    hits = [1, 0] * 15
    files = [write_hits(tmp_path, "big", v, "cot", "AI2D", hits) for v in ("dense", MAIN)]
    first, fifth = (table_of(number, files) for number in (1, 5))
    assert bounds(cell(first, "AI2D", "big 25")) == pytest.approx((100, 100))
    low, high = bounds(cell(fifth, "AI2D", "dense"))
    assert high - low > 30


def test_paired_intervals_are_narrower_than_unpaired_ones(run, tables):
    dense, pruned = (resampled(of(run, "big", v)) for v in ("dense", MAIN))
    other_draws = resampled(of(run, "big", "dense"), seed=1)
    for name in PAPER.names:
        found = cell(tables[1], name, "big 25")
        assert bounds(found) == percentiles(100 * pruned[name] / dense[name])
        low, high = numpy.percentile(100 * pruned[name] / other_draws[name], [2.5, 97.5])
        assert found.high - found.low < 0.9 * (high - low)


def test_averages_come_out_of_the_parquet_files(run, tables):
    dense, dense_ft, main, random = (
        resampled(of(run, "big", variant, mode))
        for variant, mode in (
            ("dense", "cot"),
            ("dense-ft", "limited"),
            (MAIN, "cot"),
            ("random-25-ft", "cot"),
        )
    )
    limited = resampled(of(run, "big", MAIN, "limited"))
    ratios = [100 * main[name] / dense[name] for name in PAPER.names]
    assert bounds(cell(tables[1], "Overall", "big 25")) == percentiles(sum(ratios) / 12)
    gvqa = PAPER.categories["GVQA"]
    of_category = numpy.mean([100 * main[name] / dense[name] for name in gvqa], axis=0)
    assert bounds(cell(tables[1], "GVQA", "big 25")) == percentiles(of_category)
    second = tables[2]
    performance = 100 * sum(limited.values()) / sum(dense_ft.values())
    assert bounds(cell(second, MAIN, "relative_performance")) == percentiles(performance)
    assert bounds(cell(second, MAIN, "average")) == percentiles(sum(limited.values()) / 12)
    to_main = numpy.mean([100 * random[name] / main[name] for name in PAPER.names], axis=0)
    assert bounds(cell(tables[3], "random-25-ft", "average")) == percentiles(to_main)
    fifth = tables[5]
    assert bounds(cell(fifth, "Overall", "random-25-ft")) == percentiles(sum(random.values()) / 12)
    assert bounds(cell(fifth, "POPE", "random-25-ft")) == percentiles(random["POPE"])
    sixth = cell(tables[6], "Overall", "limited dense-ft")
    assert bounds(sixth) == percentiles(sum(dense_ft.values()) / 12)


def test_another_bootstrap_finds_nearly_the_same(run, tables):
    """Written anew with draws of its own: benchmarks independent, the two variants paired."""
    rng = numpy.random.default_rng(5)
    dense, pruned = of(run, "big", "dense"), of(run, "big", MAIN)
    ratios = []
    for name in PAPER.names:
        drawn = rng.integers(40, size=(4000, 40))
        ours, theirs = (table[name]["hit"].to_numpy()[drawn].mean(1) for table in (pruned, dense))
        ratios.append(100 * ours / theirs)
    low, high = numpy.percentile(numpy.mean(ratios, axis=0), [2.5, 97.5])
    found = cell(tables[1], "Overall", "big 25")
    assert found.low == pytest.approx(low, abs=0.4)
    assert found.high == pytest.approx(high, abs=0.4)


def test_intervals_hold_the_number_and_follow_the_seed_alone(run, tables):
    first, again, other = tables[5], table_of(5, run[::-1]), table_of(5, run, seed=1)
    for key, found in first.cells.items():
        assert found.low <= found.ours <= found.high
        assert bounds(again.cells[key]) == bounds(found)
    assert bounds(cell(other, "Overall", MAIN)) != bounds(cell(first, "Overall", MAIN))


def test_a_dense_score_of_zero_gives_no_ratio_and_rare_zeros_drop_out(tmp_path):
    files = [
        write_hits(tmp_path, "big", variant, "cot", name, hits)
        for variant, name, hits in (
            ("dense", "AI2D", [0, 0, 0]),
            (MAIN, "AI2D", [1, 0, 0]),
            ("dense", "POPE", [1, 0] * 3),
            (MAIN, "POPE", [1, 0] * 3),
        )
    ]
    table = table_of(1, files)
    assert cell(table, "AI2D", "big 25").ours is None
    assert (cell(table, "POPE", "big 25").ours, *bounds(cell(table, "POPE", "big 25"))) == (
        100,
    ) * 3
    assert cell(table, "Overall", "big 25").coverage == (1, 12)
    assert bounds(cell(table, "Overall", "big 25")) == (100, 100)


# -- where they stand -----------------------------------------------------------------------------


def test_they_are_always_in_the_csv_and_elsewhere_when_asked_for(run, tables):
    for number, plain in tables.items():
        shown = replace(plain, intervals=True)
        texts = [render.to_csv(table) for table in (plain, shown)]
        assert texts[0] == texts[1]
        rows = [r for r in csv.DictReader(io.StringIO(texts[0])) if r["ours"]]
        assert all(r["ours_low"] and r["ours_high"] for r in rows if "TTFT" not in r["column"])
        column = "Overall" if number in (1, 5, 6) else MAIN if number == 2 else "random-25-ft"
        found = next(
            c for (row, _), c in shown.cells.items() if row == column and c.low is not None
        )
        text = f"[{found.low:.1f}, {found.high:.1f}]"
        for write in (render.to_markdown, render.to_latex, render.to_html):
            assert text in write(shown)
            assert text not in write(plain)
        assert f"{found.ours:.1f} {text} /" in render.to_markdown(shown)
        assert any(note.startswith("In the CSV: 95 %") for note in plain.notes)
    shown = table_of(3, run, intervals=True)
    assert shown.intervals
    assert any(note.startswith("Brackets: 95 %") for note in shown.notes)


def test_latex_rows_stay_as_wide_as_their_head(tables):
    table = replace(tables[5], intervals=True)
    lines = render.to_latex(table).splitlines()
    body = [line for line in lines if line.endswith(r"\\") and "[" in line]
    assert len(body) == 13
    assert all(line.count("&") == 2 + 6 - 1 for line in body), "six spans of three"


def test_without_outcomes_there_is_a_note_instead(tmp_path):
    files = [write_score(tmp_path, "big", v, "cot", "AI2D", 50.0) for v in ("dense", MAIN)]
    table = table_of(1, files, intervals=True)
    assert bounds(cell(table, "AI2D", "big 25")) == (None, None)
    assert any(note.startswith("No interval: 3 of 3 numbers") for note in table.notes)
    assert "[" not in render.to_markdown(table).split("| Text/Chart | AI2D |")[1].split("\n")[0]
    fifth = table_of(5, files)
    assert bounds(cell(fifth, "AI2D", MAIN)) == (45.0, 55.0), "what the result itself says"
    assert bounds(cell(fifth, "Overall", MAIN)) == (None, None)


# -- what must not be compared --------------------------------------------------------------------


def test_outcomes_of_another_run_are_refused(tmp_path):
    file = write_hits(tmp_path, "big", "dense", "cot", "AI2D", [1, 0])
    write_score(tmp_path, "big", "dense", "cot", "AI2D", 75.0)
    with pytest.raises(InputError, match=r"AI2D\.parquet: its outcomes give 50 and .* says 75"):
        table_of(5, [file])


def test_other_questions_are_refused_unless_one_result_is_partial(tmp_path):
    dense = write_hits(tmp_path, "big", "dense", "cot", "AI2D", [1, 1, 1], questions="abc")
    pruned = write_hits(tmp_path, "big", MAIN, "cot", "AI2D", [1, 0, 1], questions="abd")
    with pytest.raises(InputError, match="not the same questions") as caught:
        table_of(1, [dense, pruned])
    assert all(str(f.with_suffix("")) in str(caught.value) for f in (dense, pruned))
    write_hits(tmp_path, "big", MAIN, "cot", "AI2D", [1, 0], questions="ab", partial=True)
    table = table_of(1, [dense, pruned])
    found = cell(table, "AI2D", "big 25")
    assert found.partial
    # Over the two questions that both have: 50 of 100, and as in the first test.
    assert (found.ours, *bounds(found)) == (50.0, 0.0, 100.0)
    assert cell(table_of(5, [dense, pruned]), "AI2D", "dense").ours == 100.0
    assert any("questions that both sides answered" in note for note in table.notes)


def test_a_part_is_divided_by_the_same_part(tmp_path):
    """Dense is right on the first half alone, which is all that the pruned model was asked."""
    files = [
        write_hits(tmp_path, "big", "dense-ft", "limited", name, [1] * 10 + [0] * 10)
        for name in PAPER.names
    ]
    files += [
        write_hits(tmp_path, "big", MAIN, "limited", name, [1, 0] * 5, partial=True)
        for name in PAPER.names
    ]
    found = cell(table_of(2, files), MAIN, "relative_performance")
    assert (found.ours, found.partial, found.coverage) == (50.0, True, None)
    assert "†" in render.to_markdown(table_of(2, files))
    # What is known of a benchmark without outcomes is not over the same questions.
    files[0].with_suffix(".parquet").unlink()
    found = cell(table_of(2, files), MAIN, "relative_performance")
    assert (found.ours, found.coverage) == (50.0, (11, 12))
    for file in files[1:12]:
        file.with_suffix(".parquet").unlink()
    assert cell(table_of(2, files), MAIN, "relative_performance").ours is None


def test_a_part_of_rotations_and_of_seeds_is_divided_row_by_row(tmp_path):
    questions = ["q"] * 4 + ["r"] * 4
    dense = write_hits(
        tmp_path, "big", "dense", "cot", "HRBench4K", [1, 0, 1, 0, 1, 1, 1, 1], questions
    )
    parts = [
        write_hits(tmp_path, "big", name, "cot", "HRBench4K", hits, questions[:2], partial=True)
        for name, hits in ((MAIN, [1, 0]), (f"{MAIN}-s1", [1, 1]))
    ]
    found = cell(table_of(1, [dense, *parts]), "HRBench4K", "big 25")
    assert (found.ours, found.spread.low, found.spread.high) == (150, 100, 200)


def test_numbers_that_few_resamples_have_get_no_interval(tmp_path):
    """One hit of 40 on every benchmark: nearly every resample has a reference of 0 somewhere."""
    files = [
        write_hits(tmp_path, "big", variant, "cot", name, hits)
        for name in PAPER.names
        for variant, hits in ((MAIN, [1] + [0] * 39), ("random-25-ft", [1, 0] * 20))
    ]
    table = table_of(3, files)
    found = cell(table, "random-25-ft", "average")
    assert found.ours == pytest.approx(2000)
    assert bounds(found) == (None, None)
    assert 0 < found.defined < 0.05
    (note,) = [note for note in table.notes if note.startswith("No interval")]
    assert "5 of 5 numbers, which exist in fewer than 95 % of the resamples" in note
    assert "no interval: defined in" in render.to_csv(table)


@pytest.mark.parametrize(
    "change", [{"tsv": {"md5": "b"}}, {"num_samples": 63}], ids=["tsv", "num_samples"]
)
def test_whole_results_are_of_the_same_questions(tmp_path, change):
    def files(**more):
        return [
            write_score(tmp_path, "big", v, "cot", "AI2D", 50.0, **({"tsv": {"md5": "a"}} | made))
            for v, made in (("dense", {}), (MAIN, change | more))
        ]

    with pytest.raises(InputError, match="not the same questions") as caught:
        table_of(1, files())
    assert all(str(file) in str(caught.value) for file in files())
    assert all(text in str(caught.value) for text in map(str, change))
    partial = cell(table_of(1, files(partial=True)), "AI2D", "big 25")
    assert partial.ours is None, "a part over a whole"


@pytest.mark.parametrize("score", [-5.0, 150.0, 1e308])
def test_scores_beyond_the_scale_are_refused(tmp_path, score):
    file = write_score(tmp_path, "big", "dense", "cot", "AI2D", score, interval=None)
    with pytest.raises(InputError, match=r"AI2D\.json: score is .* not within 0 and 100"):
        load_results([file])


@pytest.mark.parametrize(
    "ends",
    [
        [None, None],
        [1],
        [1, 2, 3],
        "x",
        [float("nan")] * 2,
        [9, 8],
        [-1, 5],
        [True, 5],
        5,
        [0, 200],
    ],
)
def test_intervals_of_another_shape_are_refused(tmp_path, ends):
    file = write_score(tmp_path, "big", "dense", "cot", "AI2D", 50.0)
    body = json.loads(file.read_text(encoding="utf-8")) | {"interval": ends}
    file.write_text(json.dumps(body), encoding="utf-8")
    with pytest.raises(InputError, match=r"AI2D\.json: interval is"):
        load_results([file])


def test_rotations_of_one_question_are_drawn_together(tmp_path):
    files = [
        write_hits(tmp_path, "big", variant, "cot", "HRBench4K", hits, questions=["q"] * 4)
        for variant, hits in (("dense", [1, 1, 1, 1]), (MAIN, [1, 0, 1, 0]))
    ]
    assert bounds(cell(table_of(1, files), "HRBench4K", "big 25")) == (50.0, 50.0)


GENERATION = {"max_new_tokens": 50, "do_sample": False, "dtype": "float32", "engine": "batched"}


@pytest.mark.parametrize(
    ("change", "text"),
    [
        ({"dtype": "bfloat16"}, "generation.dtype is 'float32' and 'bfloat16'"),
        ({"max_new_tokens": 64}, "generation.max_new_tokens is 50 and 64"),
        ({"min_pixels": 1024}, "generation.min_pixels is None and 1024"),
    ],
)
def test_results_generated_in_other_ways_do_not_share_a_table(tmp_path, change, text):
    files = [
        write_score(tmp_path, "big", variant, "cot", "AI2D", 50.0, generation=settings)
        for variant, settings in (("dense", GENERATION), (MAIN, GENERATION | change))
    ]
    with pytest.raises(InputError, match=text) as caught:
        table_of(1, files)
    assert all(str(file) in str(caught.value) for file in files)


def test_modes_differ_in_their_tokens_and_models_in_their_dtype(tmp_path):
    made = [
        ("big", "cot", {}),
        ("big", "limited", {"max_new_tokens": 5}),
        ("small", "cot", {"dtype": "bfloat16"}),
    ]
    files = [
        write_score(tmp_path, model, "dense", mode, "AI2D", 50.0, generation=GENERATION | change)
        for model, mode, change in made
    ]
    assert cell(table_of(6, files), "AI2D", "cot dense").ours == 50.0
    other = write_score(
        tmp_path, "big", "dense-ft", "limited", "AI2D", 50.0, generation=GENERATION | {"dtype": "x"}
    )
    with pytest.raises(InputError, match=r"generation\.dtype"):
        table_of(6, [*files, other])


@pytest.mark.parametrize("key", ["kind", "model", "prompt"])
def test_one_grader_per_benchmark(tmp_path, key):
    grader = {"kind": "openai", "model": "judge-1", "prompt": "p1", "ungraded": 0}
    files = [
        write_score(tmp_path, "big", variant, "cot", "MIABench", 50.0, grader=used)
        for variant, used in (("dense", grader), (MAIN, grader | {key: "other"}))
    ]
    with pytest.raises(InputError, match=rf"grader\.{key} is .* and 'other'"):
        table_of(1, files)
    again = write_score(tmp_path, "big", MAIN, "cot", "MIABench", 50.0, grader=grader)
    table = table_of(1, [files[0], again])
    assert "Graded by judge-1, prompt p1: MIABench." in table.notes


def test_files_are_read_once(run, monkeypatch):
    read = []
    resampler = Resampler(0)
    monkeypatch.setattr(
        "interlace.reporting.resamples.resampled_scores",
        lambda *arguments: read.append(arguments) or numpy.zeros(2000),
    )
    scores = load_results(run[:3]).scores
    for _ in range(2):
        for found in scores.values():
            for name, score in found.items():
                assert resampler.of_score(score, name).num_questions == 40
    assert len(read) == 3


def test_a_part_is_no_change_from_a_whole(tmp_path):
    files = [write_score(tmp_path, "big", "dense", "cot", name, 50.0) for name in ("AI2D", "POPE")]
    files += [write_score(tmp_path, "big", "dense-ft", "cot", "AI2D", 60.0)]
    files += [write_score(tmp_path, "big", "dense-ft", "cot", "POPE", 90.0, partial=True)]
    assert changes_of_results(load_results(files), "big", "cot") == {"AI2D": pytest.approx(20)}
