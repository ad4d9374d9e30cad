"""Several seeds of a variant stand in tables as one number with its spread."""

import csv
import io
import math

import numpy
import pandas
import pytest

from interlace.evaluation.intervals import resampled_scores
from interlace.reporting import render
from interlace.reporting.labels import Variant, parse_variant
from interlace.reporting.paper import load_paper
from interlace.reporting.results import load_results
from interlace.reporting.seeds import Spread, over_seeds, spread
from interlace.reporting.tables import make_table
from tests.unit.reporting_results import (
    EXPERIMENTS,
    MODELS,
    write_hits,
    write_score,
    write_timing,
)

PAPER = load_paper()
MAIN = "interlace-25-ft"


def table_of(number, files, **options):
    return make_table(number, load_results(files), PAPER, MODELS, EXPERIMENTS, **options)


def write(root, scores, benchmark="AI2D", mode="cot", **changes):
    return [
        write_score(root, "big", variant, mode, benchmark, score, **changes)
        for variant, score in scores.items()
    ]


@pytest.mark.parametrize(
    ("name", "variant"),
    [
        ("interlace-25-ft-s1", Variant("interlace", 25.0, True, 1)),
        ("random-25-s12", Variant("random", 25.0, False, 12)),
        ("dense-ft-s0", Variant("dense", None, True, 0)),
        ("dense-s3", Variant("dense", None, False, 3)),
    ],
)
def test_the_suffix_of_a_seed(name, variant):
    assert parse_variant(name) == variant
    assert variant.id == name
    assert variant.label.endswith(f", seed {variant.seed}")


def test_mean_and_spread_by_hand(tmp_path):
    files = write(tmp_path, {MAIN: 60.0, f"{MAIN}-s1": 70.0, f"{MAIN}-s2": 65.0, "dense": 80.0})
    found = table_of(5, files).cells["AI2D", MAIN]
    # Squares around 65: 25, 25, 0; 50 over n - 1 = 2.
    assert found.ours == pytest.approx(65)
    assert found.spread == Spread(3, pytest.approx(5.0), 60.0, 70.0)
    assert (found.low, found.high) == (None, None), "one seed's interval is not the mean's"
    ratio = table_of(1, files).cells["AI2D", "big 25"]
    assert ratio.ours == pytest.approx(81.25)
    assert ratio.spread == Spread(3, pytest.approx(6.25), pytest.approx(75), pytest.approx(87.5))


def test_spread_of_averages_is_of_each_seeds_average(tmp_path):
    """Two benchmarks that move against each other: no spread of their mean."""
    files = write(tmp_path, {MAIN: 60.0, f"{MAIN}-s1": 70.0}, "AI2D")
    files += write(tmp_path, {MAIN: 50.0, f"{MAIN}-s1": 40.0}, "POPE")
    cells = table_of(5, files).cells
    assert cells["Overall", MAIN].ours == pytest.approx(55)
    assert cells["Overall", MAIN].spread == Spread(2, 0.0, 55.0, 55.0)
    assert cells["POPE", MAIN].spread.deviation == pytest.approx(math.sqrt(50))
    assert cells["Overall", MAIN].coverage == (2, 12)


def test_what_is_divided_by_stands_at_its_mean(tmp_path):
    files = write(tmp_path, {MAIN: 50.0, f"{MAIN}-s1": 70.0, "random-25-ft": 30.0})
    files += write(tmp_path, {"random-25-ft-s1": 60.0})
    found = table_of(3, files).cells["random-25-ft", "average"]
    assert found.ours == pytest.approx(75)  # 45 / 60
    assert found.spread == Spread(
        2, pytest.approx(25 * math.sqrt(2)), pytest.approx(50), pytest.approx(100)
    )


def test_seeds_are_no_methods_of_their_own(tmp_path):
    files = write(tmp_path, {MAIN: 50.0, f"{MAIN}-s1": 70.0, "random-25-ft-s1": 60.0})
    table = table_of(5, files)
    assert [c.label for c in table.columns] == [
        *("Consecutive", "Random", "INTERLACE-OA", "INTERLACE-TN", "INTERLACE", "Dense")
    ]
    assert table.cells["AI2D", "random-25-ft"].spread is None, "one seed has no spread"
    assert table.cells["AI2D", "random-25-ft"].ours == 60.0


def test_the_interval_is_of_the_seeds_mean(tmp_path):
    hits = {MAIN: [1, 1, 0, 0, 1, 0], f"{MAIN}-s1": [0, 1, 1, 0, 1, 1], "dense": [1, 1, 1, 0, 1, 1]}
    files = [write_hits(tmp_path, "big", v, "cot", "VStar", found) for v, found in hits.items()]
    tables = [pandas.read_parquet(file.with_suffix(".parquet")) for file in files]
    own, other, dense = (resampled_scores(table, 0, "VStar") for table in tables)
    expected = numpy.percentile(100 * (own + other) / 2 / dense, [2.5, 97.5])
    found = table_of(1, files).cells["VStar", "big 25"]
    assert (found.low, found.high) == pytest.approx(tuple(expected))
    files[1].with_suffix(".parquet").unlink()
    assert table_of(1, files).cells["VStar", "big 25"].low is None, "one seed's are missing"


def test_timings_are_of_the_runs_own_seed(tmp_path):
    files = write(tmp_path, {MAIN: 50.0, f"{MAIN}-s1": 70.0}, mode="limited")
    files += [write_timing(tmp_path, "big", MAIN, "AI2D", 1.2)]
    found = table_of(2, files).cells[MAIN, "ttft_speedup"]
    assert (found.ours, found.spread) == (pytest.approx(1.2), None)


def test_every_format_shows_the_spread(tmp_path):
    files = write(tmp_path, {MAIN: 60.0, f"{MAIN}-s1": 70.0, "dense": 80.0}, partial=True)
    table = table_of(5, files)
    assert "65.0† ± 7.1 / 72.3" in render.to_markdown(table)
    assert "65.0† ± 7.1" in render.to_html(table)
    assert r"{\tiny $\pm$ 7.1}" in render.to_latex(table)
    rows = {r["column"]: r for r in csv.DictReader(io.StringIO(render.to_csv(table)))
            if r["row"] == "AI2D"}  # fmt: skip
    row = rows["INTERLACE"]
    assert [row[k] for k in ("seeds", "spread", "seeds_low", "seeds_high")] == [
        *("2", "7.07107", "60", "70")
    ]
    assert row["note"] == "part of a benchmark"
    assert rows["Dense"]["seeds"] == ""
    assert any(
        note.startswith("±: mean and sample standard deviation over 2") for note in table.notes
    )


def test_what_is_known_of_one_seed_is_known_of_the_mean(tmp_path):
    files = write(tmp_path, {MAIN: 60.0})
    files += write(tmp_path, {f"{MAIN}-s1": 70.0}, partial=True, fixture=True)
    (score,) = over_seeds(load_results(files)).values("big", MAIN, "cot").values()
    assert score.partial
    assert score.fixture
    assert dict(score.by_seed) == {None: 60.0, 1: 70.0}
    assert over_seeds(over_seeds(load_results(files))).values("big", MAIN, "cot")["AI2D"] == score


def test_benchmarks_of_a_variant_are_averaged_over_the_same_seeds(tmp_path):
    """A seed that half of the benchmarks have would move their half of the average alone."""
    files = write(tmp_path, {MAIN: 50.0, f"{MAIN}-s1": 90.0, f"{MAIN}-s2": 70.0}, "AI2D")
    files += write(tmp_path, {MAIN: 50.0, f"{MAIN}-s2": 70.0}, "POPE")
    table = table_of(5, files)
    for row in ("AI2D", "POPE", "Overall"):
        assert table.cells[row, MAIN].ours == pytest.approx(60)
        assert table.cells[row, MAIN].spread.count == 2
    (note,) = [note for note in table.notes if note.startswith("Scores left out")]
    assert note.endswith(f"big/{MAIN}/cot 1.")
    assert not any("own seed" in note for note in table.notes)


def test_without_a_seed_that_all_have_the_commonest_stands_alone(tmp_path):
    files = write(tmp_path, {MAIN: 50.0, f"{MAIN}-s1": 90.0}, "AI2D")
    files += write(tmp_path, {f"{MAIN}-s1": 70.0}, "POPE")
    files += write(tmp_path, {MAIN: 10.0}, "VStar")
    table = table_of(5, files)
    assert table.cells["Overall", MAIN].ours == pytest.approx(30)
    assert table.cells["Overall", MAIN].coverage == (2, 12)
    assert table.cells["POPE", MAIN].ours is None
    assert any(f"big/{MAIN}/cot 2." in note for note in table.notes)


def test_a_variant_without_the_runs_own_seed_says_so(tmp_path):
    files = write(tmp_path, {f"{MAIN}-s1": 90.0, f"{MAIN}-s2": 70.0, "dense": 80.0})
    notes = table_of(5, files).notes
    assert f"The run's own seed is missing: big/{MAIN}/cot." in notes
    merged = over_seeds(load_results(files))
    assert over_seeds(merged).remarks == merged.remarks


def test_fewer_than_two_seeds_have_no_spread():
    assert spread({}) is None
    assert spread({None: 5.0}) is None
