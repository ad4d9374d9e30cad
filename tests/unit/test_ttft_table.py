import csv

import pytest

from interlace.errors import InputError
from interlace.io import read_json, write_json
from interlace.reporting.paper import load_paper
from interlace.reporting.results import Results, load_results
from interlace.reporting.table_ttft import make_ttft_table
from interlace.reporting.timings import mean_interval, read_timing
from interlace.reporting.ttft_outputs import build_ttft_table
from tests.unit.reporting_results import MODELS, STANDIN, write_timing
from tests.unit.test_reporting_figure_ttft import full_timing

PAPER = load_paper()


def side(mean, layers, rate, memory, disk):
    return {
        "mean_s": mean,
        "num_layers": layers,
        "decode_tokens_per_s": rate,
        "peak_memory_bytes": memory,
        "weights_disk_bytes": disk,
    }


@pytest.fixture
def files(tmp_path):
    found = []
    for number, benchmark in enumerate(PAPER.names):
        file = full_timing(tmp_path, "big", "interlace-25-ft", benchmark, 1.2 + 0.1 * (number % 2))
        body = read_json(file) | {
            "dense": side(0.1, 36, 20.0, 3e9 + number, 17.5e9),
            "pruned": side(0.08, 27, 26.0 + 2 * (number % 2), 2e9, 14e9),
            "decoder_speedup": {"ratio": 1.34, "interval": [1.3, 1.4]},
            "roofline": {"speedup": 1.31},
            "end_to_end": {"dense": {"mean_s": 0.2}, "pruned": {"mean_s": 0.18}, "ratio": 1.11},
            "memory_kind": "CUDA",
        }
        write_json(file, body)
        found.append(file)
    return found


def test_a_row_per_variant_beside_the_paper_s_mean(files, tmp_path):
    files.append(write_timing(tmp_path, "big", "sleb-25", "AI2D", 1.3))
    table = make_ttft_table(load_results(files), PAPER, MODELS, STANDIN)
    assert [row.key for row in table.rows] == ["big sleb-25", "big interlace-25-ft"]
    cells = {key: table.cells["big interlace-25-ft", key] for _, key in table.cells}
    speedup = cells["speedup"]
    assert speedup.ours == pytest.approx(1.25)
    assert speedup.paper == PAPER.cell(4, "Overall", "8B_25")
    assert (speedup.low, speedup.high) == pytest.approx((1.25, 1.25))
    ours = {key: cell.ours for key, cell in cells.items()}
    assert (ours["possible"], ours["decoder"]) == pytest.approx((1.31, 1.34))
    assert (ours["end_to_end"], ours["layers"]) == pytest.approx((1.11, 27))
    assert (ours["dense_rate"], ours["pruned_rate"]) == pytest.approx((20, 27))
    assert (ours["dense_memory"], ours["pruned_memory"]) == pytest.approx((3000, 2000), rel=1e-6)
    assert (ours["dense_disk"], ours["pruned_disk"]) == pytest.approx((17500, 14000))
    assert ours["share_decoder"] == pytest.approx(100 * 0.07 / 0.08)
    assert cells["decoder"].low == pytest.approx(0.0008 / 0.0006)
    # the other variant has one benchmark, and nothing beyond its speed-up
    other = table.cells["big sleb-25", "speedup"]
    assert (other.ours, other.coverage, other.difference) == (1.3, (1, 12), None)
    assert other.paper == PAPER.cell(2, "SLEB", "ttft_speedup") > 1
    assert table.cells["big sleb-25", "possible"].ours is None
    assert "Peak memory: CUDA." in table.notes
    assert table.standin


def test_all_formats_are_written(files, tmp_path):
    stem = tmp_path / "tables" / "ttft"
    build_ttft_table(files, stem, models=MODELS, standin=STANDIN, intervals=True)
    with stem.with_suffix(".csv").open() as handle:
        rows = list(csv.DictReader(handle))
    (speedup,) = [r for r in rows if r["column"] == "TTFT"]
    assert float(speedup["ours"]) == pytest.approx(1.25)
    assert float(speedup["ours_low"]) == pytest.approx(1.25)
    assert "Roofline" in stem.with_suffix(".html").read_text()
    assert r"\begin{tabular}" in stem.with_suffix(".tex").read_text()
    assert "decoder alone" in stem.with_suffix(".md").read_text()


def test_no_timings_make_an_empty_table():
    assert make_ttft_table(Results(), PAPER, MODELS).rows == []


def test_an_interval_needs_samples_and_holds_the_mean(tmp_path):
    tokens = tuple(range(10, 60, 7))
    file = full_timing(tmp_path, "big", "interlace-25-ft", "AI2D", tokens=tokens)
    body = read_json(file)
    for number, sample in enumerate(body["samples"]):
        sample["pruned_s"] *= 1 + 0.1 * (number % 3)
    write_json(file, body)
    timings = load_results([file]).timings["big", "interlace-25-ft"]
    low, high = mean_interval(timings)
    dense, pruned = (sum(s[f"{k}_s"] for s in body["samples"]) for k in ("dense", "pruned"))
    assert low < dense / pruned < high
    assert mean_interval(timings) == (low, high)
    assert mean_interval(timings, seed=1) != (low, high)
    assert mean_interval({}) is None
    bare = write_timing(tmp_path, "small", "interlace-25-ft", "AI2D", 1.2)
    assert mean_interval(load_results([bare]).timings["small", "interlace-25-ft"]) is None


def test_a_file_without_a_mean_is_refused(tmp_path):
    with pytest.raises(InputError, match="no key 'mean_s'"):
        read_timing({"speedup": 1.0, "dense": {}, "pruned": {}}, tmp_path / "AI2D.json")
