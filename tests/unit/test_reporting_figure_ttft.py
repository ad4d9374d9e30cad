import json

import matplotlib.pyplot as plt
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from matplotlib.text import Text

from interlace.errors import InputError
from interlace.evaluation.outcomes import write_outcomes
from interlace.io import read_json
from interlace.reporting.alike import check_alike
from interlace.reporting.figure_ttft import draw_breakdown, draw_speedup
from interlace.reporting.figure_ttft_accuracy import draw_accuracy, panels_of
from interlace.reporting.figure_ttft_tokens import _lowest, draw_tokens
from interlace.reporting.figures import MANY, STYLE
from interlace.reporting.labels import Variant
from interlace.reporting.paper import load_paper
from interlace.reporting.results import Results, load_results
from interlace.reporting.ttft_outputs import build_ttft_accuracy
from tests.unit.reporting_results import MODELS, STANDIN, texts, write_score, write_timing

PAPER = load_paper()


@pytest.fixture(autouse=True)
def _figures_of_tests(monkeypatch):
    monkeypatch.setitem(STYLE, "pdf.fonttype", 3)  # to embed subsets of fonts takes seconds
    yield
    plt.close("all")


def full_timing(root, model, variant, benchmark, speedup=1.25, tokens=(10, 100), **changes):
    """Write a TTFT file with stages, preprocessing and samples, whose ratios differ by a percent."""
    samples = [
        {
            "index": str(i),
            "visual_tokens": count,
            "dense_s": 0.001 * count,
            "pruned_s": 0.001 * count / speedup * (1 + 0.01 * (-1) ** i),
            "dense_decoder_s": 0.0008 * count,
            "pruned_decoder_s": 0.0006 * count * (1 + 0.01 * (-1) ** i),
            "dense_roofline_s": 0.0005 * count,
            "pruned_roofline_s": 0.0004 * count,
        }
        for i, count in enumerate(tokens)
    ]
    return write_timing(
        root, model, variant, benchmark, speedup,
        **of_samples(samples), preprocessing={"mean_s": 0.05}, **changes,
    )  # fmt: skip


def of_samples(samples):
    """Return what a TTFT file says of its samples."""
    mean = {key: np.mean([s[key] for s in samples]) for key in samples[0] if key.endswith("_s")}
    split = {}
    for side in ("dense", "pruned"):
        decoder, total = mean[f"{side}_decoder_s"], mean[f"{side}_s"]
        rest = total - decoder
        split[side] = {"vision_s": 0.6 * rest, "projector_s": 0.2 * rest, "decoder_s": decoder}
        split[side] |= {"first_sampling_s": 0.1 * rest, "rest_s": 0.1 * rest}
    return {
        "num_samples": len(samples),
        "samples": samples,
        "dense": {"mean_s": mean["dense_s"]},
        "pruned": {"mean_s": mean["pruned_s"]},
        "speedup": mean["dense_s"] / mean["pruned_s"],
        "split": split,
    }


def test_bars_show_every_stage_in_percent_of_dense_and_preprocessing_below(tmp_path):
    stages = {"vision_s": 0.02, "projector_s": 0.005, "decoder_s": 0.07, "first_sampling_s": 0.004}
    file = write_timing(
        tmp_path, "big", "interlace-25-ft", "AI2D", 1.25,
        dense={"mean_s": 0.2}, pruned={"mean_s": 0.16}, preprocessing={"mean_s": 0.05},
        split={"dense": stages, "pruned": stages},
    )  # fmt: skip
    figure = draw_breakdown(load_results([file]), MODELS, PAPER, "interlace")
    bars = [p for p in figure.axes[0].patches if p.get_x() < 0 and p.get_hatch() is None]
    assert [p.get_height() for p in bars] == pytest.approx([10, 2.5, 35, 2, 50.5, 25])
    assert bars[0].get_y() == 0
    assert bars[-1].get_y() == -25
    pruned = [p for p in figure.axes[0].patches if p.get_hatch() is not None]
    assert sum(p.get_height() for p in pruned[:-1]) == pytest.approx(80)
    written = texts(figure).splitlines()
    assert {"200", "160"} <= {*written}
    for label in ("vision tower", "projector", "first sampling", "rest"):
        assert label in written


def test_a_long_preprocessing_is_cut_off_and_written(tmp_path):
    file = full_timing(tmp_path, "big", "interlace-25-ft", "AI2D", tokens=(10, 12))
    figure = draw_breakdown(load_results([file]), MODELS, PAPER, "interlace")  # 50 ms before 11 ms
    assert figure.axes[0].get_ylim()[0] == -100
    assert "50 ms" in texts(figure).splitlines()


def test_a_benchmark_a_hundred_times_as_long_leaves_the_others_readable(tmp_path):
    files = [
        full_timing(tmp_path, "big", "interlace-25-ft", "AI2D", tokens=(300, 400)),
        full_timing(tmp_path, "big", "interlace-25-ft", "HRBench8K", tokens=(30000, 40000)),
    ]
    figure = draw_breakdown(load_results(files), MODELS, PAPER, "interlace")
    top = max(p.get_y() + p.get_height() for p in figure.axes[0].patches if p.get_x() < 0)
    assert top == pytest.approx(100)
    low, high = figure.axes[0].get_ylim()
    assert high - low < 250
    assert {"350", "35000"} <= {*texts(figure).splitlines()}


def test_tokens_show_a_point_per_sample_over_a_roofline_that_never_falls(tmp_path):
    files = [
        full_timing(tmp_path, "big", "interlace-25-ft", "AI2D", tokens=(10, 100)),
        full_timing(tmp_path, "big", "interlace-25-ft", "POPE", tokens=(50,)),
        full_timing(tmp_path, "big", "interlace-10-ft", "POPE", tokens=(77,)),
    ]
    body = read_json(files[1])
    body["samples"][0]["dense_roofline_s"] = 9.0  # a long text
    files[1].write_text(json.dumps(body))
    figure = draw_tokens(load_results(files), MODELS, PAPER, "interlace", STANDIN)
    dots, line = figure.axes[0].lines[:2]
    assert list(dots.get_xdata()) == [10, 100, 50]
    assert list(dots.get_ydata()) == pytest.approx([10, 100, 50])
    assert list(line.get_xdata()) == [10, 50, 100]
    assert list(line.get_ydata()) == pytest.approx([5, 50, 50])
    assert "roofline" in texts(figure)
    assert "Stand-in" in texts(figure)


def test_tokens_without_samples_say_so(tmp_path):
    file = write_timing(tmp_path, "big", "interlace-25-ft", "AI2D", 1.2)
    figure = draw_tokens(load_results([file]), MODELS, PAPER, "interlace")
    assert "no samples in the files" in texts(figure)
    assert "no TTFT measured" in texts(draw_tokens(Results(), MODELS, PAPER, "interlace"))


def test_text_only_samples_have_a_place(tmp_path):
    file = full_timing(tmp_path, "big", "interlace-25-ft", "MIABench", tokens=(20, 30))
    body = read_json(file)
    body["samples"][0]["visual_tokens"] = 0
    file.write_text(json.dumps(body))
    figure = draw_tokens(load_results([file]), MODELS, PAPER, "interlace")
    figure.draw_without_rendering()
    low, high = figure.axes[0].get_xlim()
    assert low <= 0 < 30 <= high


def test_many_samples_are_drawn_as_pixels(tmp_path):
    for count, pixels in ((MANY, False), (MANY + 1, True)):
        tokens = tuple(range(1, count + 1))
        file = full_timing(tmp_path, "big", "interlace-25-ft", "AI2D", tokens=tokens)
        dots, line = draw_tokens(load_results([file]), MODELS, PAPER, "interlace").axes[0].lines[:2]
        assert bool(dots.get_rasterized()) is pixels
        assert not line.get_rasterized()


@given(st.lists(st.tuples(st.integers(0, 9), st.floats(0, 1)), min_size=1, max_size=30))
def test_the_roofline_is_the_lowest_of_as_many_tokens_or_more(samples):
    tokens, least = map(np.array, zip(*samples, strict=True))
    counts, line = _lowest(tokens, least)
    assert list(counts) == sorted(set(tokens))
    assert list(line) == [least[tokens >= count].min() for count in counts]


def outcome_rows(hits):
    import pandas as pd

    count = len(hits)
    return pd.DataFrame(
        {
            "index": [str(i) for i in range(count)],
            "question": [str(i) for i in range(count)],
            "prediction": ["a"] * count,
            "answer": ["a"] * count,
            "hit": np.array(hits, dtype=float),
            "value": np.array(hits, dtype=float),
            "weight": np.ones(count),
            "empty": [False] * count,
            "new_tokens": pd.array([1] * count, dtype="Int32"),
            "finished": pd.array([True] * count, dtype="boolean"),
        }
    )


def write_scored(root, variant, benchmark, hits, mode="limited"):
    """Write a score with its outcomes."""
    score = 100 * float(np.mean(hits))
    file = write_score(
        root, "big", variant, mode, benchmark, score, outcomes=f"{benchmark}.parquet"
    )
    write_outcomes(file.with_suffix(".parquet"), outcome_rows(hits))
    return file


@pytest.fixture
def scored(tmp_path):
    """Dense, SLEB in both forms (timed in one) and the main method with a further seed."""
    files = []
    for benchmark in ("AI2D", "POPE"):
        files += [
            write_scored(tmp_path, "dense", benchmark, [1, 1, 1, 0]),
            write_scored(tmp_path, "sleb-25", benchmark, [1, 0, 0, 0]),
            write_scored(tmp_path, "sleb-25-ft", benchmark, [1, 1, 0, 0]),
            write_scored(tmp_path, "interlace-25-ft", benchmark, [1, 1, 1, 1]),
            write_scored(tmp_path, "interlace-25-ft-s1", benchmark, [1, 1, 0, 0]),
            write_scored(tmp_path, "random-25-ft", benchmark, [1, 1, 0, 0]),  # not timed
            full_timing(tmp_path, "big", "sleb-25", benchmark, 1.2),
        ]
    for benchmark, speedup in (("AI2D", 1.5), ("POPE", 1.3), ("VStar", 9.0)):
        files.append(full_timing(tmp_path, "big", "interlace-25-ft", benchmark, speedup))
    return load_results(files)


def test_points_are_means_over_what_was_scored_and_timed(scored):
    (panel,) = panels_of(scored, "big", PAPER)
    assert (panel.mode, panel.names) == ("limited", ["AI2D", "POPE"])
    found = {p.variant: p for p in panel.points}
    assert {v.id for v in found} == {"dense", "sleb-25", "sleb-25-ft", "interlace-25-ft"}
    dense = found[Variant("dense", None, False)]
    assert (dense.speedup, dense.score, dense.speedup_interval) == (1.0, 75.0, None)
    low, high = dense.score_interval
    assert 0 < low < 75 < high <= 100
    main = found[Variant("interlace", 25.0, True)]
    assert (main.speedup, main.score) == (pytest.approx(1.4, rel=0.01), 75.0)
    low, high = main.speedup_interval
    assert low < main.speedup < high
    assert found[Variant("sleb", 25.0, True)].speedup == found[Variant("sleb", 25.0, False)].speedup
    assert panels_of(scored, "small", PAPER) == []


def test_each_mode_with_a_timed_variant_has_a_panel(tmp_path):
    files = [full_timing(tmp_path, "big", "interlace-25-ft", "AI2D")]
    for mode in ("limited", "cot"):
        files.append(write_scored(tmp_path, "interlace-25-ft", "AI2D", [1, 0], mode))
        files.append(write_scored(tmp_path, "dense", "AI2D", [1, 1], mode))
    figure = draw_accuracy(load_results(files), "big", PAPER, "The model")
    titles = [axes.get_title(loc="left") for axes in figure.axes]
    assert ["Limited" in titles[0], "CoT" in titles[1]] == [True, True]
    # Dense alone, which needs no timing, is no panel
    del files[3]
    assert [p.mode for p in panels_of(load_results(files), "big", PAPER)] == ["limited"]


def test_all_points_are_over_the_same_benchmarks_and_what_is_left_out_is_said(tmp_path):
    names = ("AI2D", "POPE", "VStar", "ChartQA")
    files = []
    for benchmark in names:
        files.append(write_scored(tmp_path, "interlace-25-ft", benchmark, [1, 0]))
        files.append(full_timing(tmp_path, "big", "interlace-25-ft", benchmark))
    for benchmark in names[:3]:
        files.append(write_scored(tmp_path, "dense", benchmark, [1, 1]))
    files.append(write_scored(tmp_path, "sleb-25", "AI2D", [1, 1]))
    files.append(full_timing(tmp_path, "big", "sleb-25", "AI2D"))
    results = load_results(files)
    (panel,) = panels_of(results, "big", PAPER)
    assert [p.variant.id for p in panel.points] == ["dense", "interlace-25-ft"]
    assert set(panel.names) == {"AI2D", "POPE", "VStar"}
    written = texts(draw_accuracy(results, "big", PAPER, "The model"))
    assert "left out, on too few benchmarks: SLEB 25 %" in written
    assert "benchmarks that not all have: ChartQA" in written


def test_partial_scores_are_marked(tmp_path):
    files = [full_timing(tmp_path, "big", "interlace-25-ft", "AI2D")]
    files.append(write_scored(tmp_path, "interlace-25-ft", "AI2D", [1, 0]))
    files.append(write_score(tmp_path, "big", "dense", "limited", "AI2D", 50.0, partial=True))
    figure = draw_accuracy(load_results(files), "big", PAPER, "The model")
    names = {t.get_text() for t in figure.axes[0].texts}
    assert names == {"Dense†", "INTERLACE 25 %"}
    assert "† from part of a benchmark" in texts(figure)


def test_every_point_has_its_name_and_no_name_covers_another(scored):
    figure = draw_accuracy(scored, "big", PAPER, "The model", STANDIN)
    axes = figure.axes[0]
    names = {t.get_text(): t for t in axes.texts}
    assert set(names) == {"Dense", "SLEB 25 %", "SLEB-FT 25 %", "INTERLACE 25 %"}
    renderer = figure.canvas.get_renderer()
    boxes = [Text.get_window_extent(t, renderer) for t in names.values()]
    covered = [a.overlaps(b) for i, a in enumerate(boxes) for b in boxes[:i]]
    assert not any(covered)
    assert "Stand-in" in texts(figure)


def test_an_interval_that_tables_refuse_is_not_drawn(tmp_path, monkeypatch):
    files = [full_timing(tmp_path, "big", "interlace-25-ft", "AI2D")]
    files.append(write_scored(tmp_path, "interlace-25-ft", "AI2D", [1, 0]))
    results = load_results(files)
    (point,) = panels_of(results, "big", PAPER)[0].points
    assert point.score_interval == (0.0, 100.0)
    monkeypatch.setattr("interlace.reporting.estimates.defined_share", lambda samples: 0.9)
    (point,) = panels_of(results, "big", PAPER)[0].points
    assert point.score_interval is None


def test_points_on_one_spot_still_have_names_apart(tmp_path):
    files = []
    for method in ("interlace", "random", "consecutive", "sleb"):
        files.append(write_score(tmp_path, "big", f"{method}-25-ft", "limited", "AI2D", 50.0))
        files.append(full_timing(tmp_path, "big", f"{method}-25-ft", "AI2D"))
    figure = draw_accuracy(load_results(files), "big", PAPER, "The model")
    renderer = figure.canvas.get_renderer()
    boxes = [Text.get_window_extent(t, renderer) for t in figure.axes[0].texts]
    assert len(boxes) == 4
    assert not any(a.overlaps(b) for i, a in enumerate(boxes) for b in boxes[:i])


def test_without_anything_both_scored_and_timed_the_figure_says_so(tmp_path):
    file = full_timing(tmp_path, "big", "interlace-25-ft", "AI2D")
    figure = draw_accuracy(load_results([file]), "big", PAPER, "The model")
    assert "no variant was both scored and timed" in texts(figure)


def test_speedup_has_the_paper_s_marker_beside_ours(tmp_path):
    file = full_timing(tmp_path, "big", "interlace-25-ft", "AI2D")
    figure = draw_speedup(load_results([file]), MODELS, PAPER, "interlace")
    printed = PAPER.cell(4, "AI2D", "8B_25")
    assert [printed] in [list(line.get_ydata()) for line in figure.axes[0].lines]


def write_accuracy(scores, timing, stem):
    build_ttft_accuracy(scores, [timing], stem, model="big", label="The model", standin=[])


def test_accuracy_is_written_and_of_results_that_were_made_alike(tmp_path):
    timing = full_timing(tmp_path, "big", "interlace-25-ft", "AI2D")
    score = write_score(tmp_path, "big", "interlace-25-ft", "limited", "AI2D", 50.0, device="cpu")
    write_accuracy([score], timing, tmp_path / "figures" / "ttft_accuracy")
    assert {p.name for p in (tmp_path / "figures").iterdir()} == {
        f"ttft_accuracy.{suffix}" for suffix in ("svg", "pdf", "png")
    }
    other = write_score(tmp_path, "big", "dense", "limited", "AI2D", 50.0, device="cuda")
    with pytest.raises(InputError, match=r"result\.device is 'cpu' and 'cuda'"):
        write_accuracy([score, other], timing, tmp_path / "refused")
    old = write_score(tmp_path, "big", "dense", "limited", "AI2D", 50.0)  # which did not say
    check_alike(load_results([score, old]))
