"""Which methods differ: p-values, Holm's adjustment, verdicts, and what is not compared."""

import csv
import shutil
import subprocess
from itertools import product

import numpy
import pandas
import pytest

from interlace.errors import InputError
from interlace.evaluation.intervals import (
    FEWEST_QUESTIONS,
    RESAMPLES,
    by_question,
    permutation_p,
    resampled_scores,
    swapped_scores,
)
from interlace.reporting.build import build_significance, build_table
from interlace.reporting.paper import OVERALL, load_paper
from interlace.reporting.results import load_results
from interlace.reporting.significance import compare
from tests.unit.reporting_results import (
    EXPERIMENTS,
    MODELS,
    STANDIN,
    shared_run,
    write_hits,
    write_score,
)

PAPER = load_paper()
MAIN, RANDOM, OA = "interlace-25-ft", "random-25-ft", "interlace_oa-25-ft"
SMALLEST = 2 / (RESAMPLES + 1)


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """The folder of a run with all methods, and its comparisons by scope."""
    files = shared_run(tmp_path_factory.getbasetemp())
    root = files[0].parents[4]
    found = compare([2, 3, 5], load_results(files), PAPER, MODELS, EXPERIMENTS)
    by_scope = {
        scope: {(c.table, c.method, c.against): c for c in found if c.scope == scope}
        for scope in (OVERALL, *PAPER.categories)
    }
    return root, by_scope


def write(root, hits, names=PAPER.names, mode="cot", **changes):
    return [
        write_hits(root, "big", variant, mode, name, list(found), **changes)
        for variant, found in hits.items()
        for name in names
    ]


def comparisons(tables, files, scope=OVERALL):
    found = compare(tables, load_results(files), PAPER, MODELS, EXPERIMENTS)
    return {(c.table, c.method, c.against): c for c in found if c.scope == scope}


def run_significance(tables, files, stem, standin=()):
    build_significance(
        tables,
        evaluation_files=files,
        models=MODELS,
        experiments=EXPERIMENTS,
        standin=standin,
        stem=stem,
    )
    return list(csv.DictReader(stem.with_suffix(".csv").open(encoding="utf-8")))


def test_clear_differences_and_none(tmp_path):
    right, wrong = [1] * 20, [0] * 20
    files = write(tmp_path, {MAIN: right, RANDOM: wrong, OA: right, "dense": right})
    found = comparisons([5], files)
    worse = found[5, "Random", "INTERLACE"]
    assert (worse.difference, worse.low, worse.high) == (-100, -100, -100)
    # Five comparisons: Random and OA with either of the two, and Dense with the main method.
    assert (worse.p, worse.adjusted) == pytest.approx((SMALLEST, 5 * SMALLEST))
    assert (worse.verdict, worse.family, worse.num_questions) == ("worse", 5, 12 * 20)
    same = found[5, "INTERLACE-OA", "INTERLACE"]
    assert (same.difference, same.p, same.adjusted) == (0, 1.0, 1.0)
    assert same.verdict == "not distinguishable"


def test_each_pair_stands_once_and_main_comes_first(run):
    found = list(run[1][OVERALL])
    assert len({(table, frozenset(pair)) for table, *pair in found}) == len(found)
    assert [f[1:] for f in found if f[0] == 3] == list(
        product(["Consecutive", "Random", "INTERLACE-OA", "INTERLACE-TN"], ["INTERLACE"])
    )
    second = [f[1:] for f in found if f[0] == 2]
    assert len(second) == 6 + 5 + 4
    assert second[:2] == [("Dense", "INTERLACE"), ("Dense-FT", "INTERLACE")]
    assert second[6] == ("Dense-FT", "Dense")
    assert second[11] == ("Wanda 2:4", "Dense-FT")
    assert len([f for f in found if f[0] == 5]) == 5 + 4


def test_the_differences_are_those_of_the_files(run):
    root, by_scope = run
    found, categories = by_scope[OVERALL], by_scope["GVQA"]

    def outcomes(variant, mode):
        folder = root / "big" / "evaluation" / variant / mode
        return {name: pandas.read_parquet(folder / f"{name}.parquet") for name in PAPER.names}

    def resamples(variant, mode):
        tables = outcomes(variant, mode)
        return {name: resampled_scores(table, 0, name) for name, table in tables.items()}

    def swaps(variant, other, mode):
        sides = outcomes(variant, mode), outcomes(other, mode)
        return {
            name: numpy.array(swapped_scores(*(by_question(s[name]) for s in sides), 0, name))
            for name in PAPER.names
        }

    ours, dense = resamples("sleb-25", "limited"), resamples("dense", "limited")
    differences = (sum(ours.values()) - sum(dense.values())) / 12
    second = found[2, "SLEB", "Dense"]
    sides = sum(swaps("sleb-25", "dense", "limited").values()) / 12
    assert second.p == pytest.approx(permutation_p(sides[0] - sides[1]))
    low, high = pandas.Series(differences).quantile([0.025, 0.975])
    assert (second.low, second.high) == (pytest.approx(low), pytest.approx(high))
    ours, main = resamples(OA, "cot"), resamples(MAIN, "cot")
    ratios = sum(100 * ours[name] / main[name] for name in PAPER.names) / 12 - 100
    third = found[3, "INTERLACE-OA", "INTERLACE"]
    assert (third.low, third.high) == pytest.approx(tuple(numpy.percentile(ratios, [2.5, 97.5])))
    swapped = swaps(OA, MAIN, "cot")
    ratios = sum(100 * swapped[name][0] / swapped[name][1] for name in PAPER.names) / 12
    assert third.p == pytest.approx(permutation_p(ratios - 100))
    gvqa = PAPER.categories["GVQA"]
    differences = sum(swapped[name][0] - swapped[name][1] for name in gvqa) / 3
    assert categories[5, "INTERLACE-OA", "INTERLACE"].p == pytest.approx(permutation_p(differences))


def test_holm_by_hand(run):
    for scope, table in product(("Overall", "GVQA"), (2, 3, 5)):
        family = [c for key, c in run[1][scope].items() if key[0] == table]
        largest = 0.0
        for rank, found in enumerate(sorted(family, key=lambda c: c.p)):
            largest = max(largest, min(1.0, (len(family) - rank) * found.p))
            assert found.adjusted == pytest.approx(largest)
            verdict = {True: "worse", False: "better"}[found.difference < 0]
            assert found.verdict == (verdict if largest < 0.05 else "not distinguishable")


def test_the_last_bit_is_no_difference(tmp_path, monkeypatch):
    """Sums of fractions in another order: always a little more, and yet the same."""
    same = numpy.full(RESAMPLES + 1, 70.0)
    noise = numpy.linspace(1e-13, 2e-13, RESAMPLES + 1)
    monkeypatch.setattr(
        "interlace.reporting.estimates.swapped_scores", lambda *_: (same + noise, same)
    )
    files = write(tmp_path, {MAIN: [1, 0] * 6, RANDOM: [1, 0] * 6}, ["TextVQA"])
    assert comparisons([5], files)[5, "Random", "INTERLACE"].p == 1.0


def test_several_seeds_are_compared_at_their_mean(tmp_path):
    hits = {MAIN: [1, 1, 0, 0], f"{MAIN}-s1": [1, 1, 1, 1], RANDOM: [0, 1, 0, 1]}
    hits = {name: 3 * rows for name, rows in hits.items()}
    found = comparisons([5], write(tmp_path, hits))[5, "Random", "INTERLACE"]
    assert found.difference == pytest.approx(-25)
    assert found.seeds == (1, 2)
    assert found.p < 0.05


def test_seeds_that_not_all_benchmarks_have_are_left_out_and_told(tmp_path):
    rows = {
        MAIN: [1, 0] * 6,
        f"{MAIN}-s1": [1, 1] * 6,
        f"{MAIN}-s2": [0, 0] * 6,
        RANDOM: [0, 1] * 6,
    }
    files = write(tmp_path, rows, ["AI2D", "POPE"])
    lost = files[3]
    assert (lost.parts[-3], lost.stem) == (f"{MAIN}-s1", "POPE")
    files.remove(lost)
    found = comparisons([5], files)[5, "Random", "INTERLACE"]
    assert found.seeds == (1, 2)
    assert found.difference == pytest.approx(25), "50 against the mean of 50 and 0"
    run_significance([5], files, tmp_path / "significance")
    text = (tmp_path / "significance.md").read_text(encoding="utf-8")
    assert f"big/{MAIN}/cot 1." in text


# -- too little to tell ---------------------------------------------------------------------------


def test_one_question_per_benchmark_tells_nothing(tmp_path):
    files = write(tmp_path, {MAIN: [1]}, mode="limited")
    files += write(tmp_path, {"dense": [0]}, PAPER.names[:1], mode="limited")
    files += write(tmp_path, {"dense": [1]}, PAPER.names[1:], mode="limited")
    (found,) = comparisons([2], files).values()
    assert found.verdict == "too few questions"
    assert (found.low, found.high, found.p, found.adjusted) == (None,) * 4
    run_significance([2], files, tmp_path / "significance")
    text = (tmp_path / "significance.md").read_text(encoding="utf-8")
    assert "Too few questions: 1 of 1 comparisons, with fewer than 10 of a benchmark" in text


@pytest.mark.parametrize(
    ("rows", "told"), [(FEWEST_QUESTIONS - 1, False), (FEWEST_QUESTIONS, True)]
)
def test_the_benchmark_with_the_fewest_questions_decides(tmp_path, rows, told):
    files = write(tmp_path, {MAIN: [1] * 40, RANDOM: [0] * 40}, ["AI2D"])
    files += write(tmp_path, {MAIN: [1] * rows, RANDOM: [0] * rows}, ["POPE"])
    found = comparisons([5], files)[5, "Random", "INTERLACE"]
    assert found.verdict == ("worse" if told else "too few questions")
    assert (found.p is not None, found.low is not None) == (told, told)


def test_a_main_method_that_hardly_scores_is_no_measure(tmp_path):
    """Ratios exist where it does not score 0: percentiles of those say nothing of the others."""
    main, other = [1] + [0] * 39, [1, 0] * 20
    files = write(tmp_path, {MAIN: main, RANDOM: other})
    found = comparisons([3], files)[3, "Random", "INTERLACE"]
    assert found.defined < 0.1
    assert (found.low, found.high, found.p, found.verdict) == (None, None, None, "not defined")
    assert comparisons([5], files)[5, "Random", "INTERLACE"].verdict == "better", "as points"
    run_significance([3], files, tmp_path / "significance")
    text = (tmp_path / "significance.md").read_text(encoding="utf-8")
    assert "Not defined: 1 of 1 comparisons" in text


def test_a_main_method_that_scores_nothing_somewhere_is_compared_elsewhere(tmp_path):
    files = write(tmp_path, {MAIN: [0] * 20, RANDOM: [1, 0] * 10}, ["AI2D"])
    files += write(tmp_path, {MAIN: [1] * 20, RANDOM: [1, 0] * 10}, ["POPE"])
    found = comparisons([3], files)[3, "Random", "INTERLACE"]
    assert (found.difference, found.coverage, found.verdict) == (-50, (1, 12), "worse")


# -- what cannot be compared ----------------------------------------------------------------------


@pytest.mark.parametrize("partial", [False, True])
def test_other_questions_are_refused_by_name(tmp_path, partial):
    files = write(tmp_path, {MAIN: [1, 1, 0]}, ["AI2D"], questions="abc")
    files += write(tmp_path, {RANDOM: [1, 0]}, ["AI2D"], questions="ab", partial=partial)
    with pytest.raises(InputError, match="not the same questions") as caught:
        comparisons([5], files)
    assert all(str(file) in str(caught.value) for file in files)


def test_other_settings_are_refused(tmp_path):
    files = write(tmp_path, {MAIN: [1, 1]}, ["AI2D"], generation={"prompt": "dataset"})
    files += write(tmp_path, {RANDOM: [1, 0]}, ["AI2D"], generation={"prompt": "custom"})
    with pytest.raises(InputError, match=r"generation\.prompt"):
        comparisons([5], files)


def test_only_tables_of_methods(tmp_path):
    with pytest.raises(InputError, match="table 4"):
        comparisons([4], write(tmp_path, {MAIN: [1, 1]}, ["AI2D"]))


def test_without_outcomes_there_is_a_difference_and_no_verdict(tmp_path):
    files = [
        write_score(tmp_path, "big", variant, "cot", "AI2D", score)
        for variant, score in ((MAIN, 60.0), (RANDOM, 40.0), ("dense", 80.0))
    ]
    files += write(tmp_path, {"consecutive-25-ft": [1, 0] * 32}, ["AI2D"])
    rows = run_significance([5], files, tmp_path / "significance")
    row = next(r for r in rows if (r["method"], r["scope"]) == ("Random", OVERALL))
    assert (row["difference"], row["p"], row["verdict"]) == ("-20", "", "no outcomes")
    assert (row["benchmarks"], row["note"]) == ("1", "1 of 12 benchmarks")
    text = (tmp_path / "significance.md").read_text(encoding="utf-8")
    assert "| Random | −20.00 [1/12] | – | – | – | no outcomes | – |" in text
    assert "No interval and no verdict: 5 of 5 comparisons" in text


def test_files_say_partial_and_stand_in(tmp_path):
    files = write(tmp_path, {MAIN: [1, 1, 0], RANDOM: [0, 1, 0]}, partial=True)
    stem = tmp_path / "tables" / "significance"
    rows = run_significance([3, 5], files, stem, STANDIN)
    assert len(rows) == 2 * (1 + 4), "overall and four categories"
    assert {r["note"] for r in rows} == {"stand-in: models, benchmarks; part of a benchmark"}
    assert {r["questions"] for r in rows if r["scope"] == OVERALL} == {"36"}
    for suffix in (".md", ".tex", ".html"):
        text = stem.with_suffix(suffix).read_text(encoding="utf-8")
        assert "stand-in" in text
        assert ("†" in text) or ("dagger" in text)
        assert "One seed per method" in text
    assert {p.suffix for p in stem.parent.iterdir()} == {".csv", ".md", ".tex", ".html"}


@pytest.mark.skipif(shutil.which("pdflatex") is None, reason="pdflatex is not installed")
def test_latex_compiles_with_intervals_and_spreads(tmp_path):
    hits = {MAIN: [1, 1, 0, 0], f"{MAIN}-s1": [1, 1, 1, 1], RANDOM: [0, 1, 0, 1], "dense": [1] * 4}
    files = write(tmp_path, hits, partial=True)
    common = {"models": MODELS, "experiments": EXPERIMENTS, "standin": STANDIN}
    run_significance([3, 5], files, tmp_path / "significance", STANDIN)
    for number in (1, 3, 5):
        stem = tmp_path / f"table{number}"
        build_table(
            number, evaluation_files=files, ttft_files=[], stem=stem, intervals=True, **common
        )
    names = ("table1", "table3", "table5", "significance")
    inputs = "".join(f"\\input{{{name}}}\n" for name in names)
    head = "\\documentclass[twocolumn]{article}\n\\usepackage{booktabs,graphicx}\n"
    document = f"{head}\\begin{{document}}\n{inputs}\\end{{document}}\n"
    (tmp_path / "all.tex").write_text(document, encoding="utf-8")
    command = ["pdflatex", "-interaction=nonstopmode", "-halt-on-error", "all.tex"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout[-2000:]
    assert "Overfull \\hbox" not in done.stdout


def test_a_run_of_one_method_says_so(tmp_path):
    files = write(tmp_path, {MAIN: [1, 1, 0]}, ["AI2D"])
    assert run_significance([3, 5], files, tmp_path / "significance") == []
    text = (tmp_path / "significance.html").read_text(encoding="utf-8")
    assert "No two methods of these tables have results." in text
    assert "stand-in" not in text
