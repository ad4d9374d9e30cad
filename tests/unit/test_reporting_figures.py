from pathlib import Path

import matplotlib.pyplot as plt
import pytest

from interlace.errors import InputError
from interlace.io import write_json
from interlace.reporting import build
from interlace.reporting.figure_finetuning import changes_of_paper, draw_figure3, relative_change
from interlace.reporting.figure_similarity import draw_figure4
from interlace.reporting.figure_ttft import draw_breakdown, ladder
from interlace.reporting.figures import STYLE, write_figure
from interlace.reporting.paper import load_paper
from interlace.reporting.results import Results, load_results
from interlace.reporting.ttft_outputs import build_ttft_figures
from tests.unit.reporting_results import (
    MODELS,
    STANDIN,
    make_pack,
    make_plan,
    texts,
    write_paper_as_results,
    write_score,
    write_timing,
)

PAPER = load_paper()
FONTS = STYLE["pdf.fonttype"]


@pytest.fixture(autouse=True)
def _figures_of_tests(monkeypatch):
    monkeypatch.setitem(STYLE, "pdf.fonttype", 3)  # to embed subsets of fonts takes seconds
    yield
    plt.close("all")


def is_whole(stem: Path) -> bool:
    starts = {".svg": b"<?xml", ".pdf": b"%PDF", ".png": b"\x89PNG"}
    files = {suffix: stem.with_name(stem.name + suffix).read_bytes() for suffix in starts}
    return all(files[suffix].startswith(start) for suffix, start in starts.items())


def test_relative_change():
    change = relative_change(
        {"AI2D": 50.0, "POPE": 0.0, "VStar": 10.0}, {"AI2D": 60.0, "POPE": 5.0}
    )
    assert change == {"AI2D": pytest.approx(20.0)}
    assert changes_of_paper(PAPER, "limited")["ScienceQA"] == pytest.approx(100 * 16.5 / 75.2)


def test_figure_3_with_one_benchmark_and_with_none(tmp_path):
    one = [
        write_score(tmp_path, "big", variant, "cot", "TextVQA", score)
        for variant, score in (("dense", 50.0), ("dense-ft", 55.0))
    ]
    assert "(n = 1)" in texts(draw_figure3(load_results(one), "big", PAPER, "Label"))
    none = draw_figure3(Results(), "big", PAPER, "Label")
    assert "no Dense and Dense-FT scores" in texts(none)


def figure_3_limits(root, dense, tuned, **changes):
    files = [
        write_score(root, "big", variant, "cot", name, score, **changes)
        for variant, scores in (("dense", dense), ("dense-ft", tuned))
        for name, score in zip(("AI2D", "POPE", "VStar"), scores, strict=True)
    ]
    figure = draw_figure3(load_results(files), "big", PAPER, "Label")
    return [axes.get_ylim() for axes in figure.axes], texts(figure)


def test_figure_3_shares_its_scale_or_says_that_it_does_not(tmp_path):
    (left, right), said = figure_3_limits(tmp_path, (50, 50, 50), (45, 50, 60))
    assert left == right
    assert left[0] <= -10
    assert left[1] >= 100 * 16.5 / 75.2, "the paper's ScienceQA"
    assert "Not the scale" not in said
    (left, right), said = figure_3_limits(tmp_path, (5, 50, 50), (50, 50, 60), partial=True)
    assert left != right
    assert "Not the scale of the left panel" in said
    assert "Label (ours, parts of benchmarks)" in said


def test_figure_3_stands_on_the_mean_of_the_seeds(tmp_path, monkeypatch):
    scores = {"dense": 50.0, "dense-ft": 50.0, "dense-ft-s1": 60.0}
    files = [write_score(tmp_path, "big", v, "cot", "AI2D", s) for v, s in scores.items()]
    drawn = []
    monkeypatch.setattr(
        "interlace.reporting.figure_finetuning.draw_figure3",
        lambda results, *rest: drawn.append(results) or plt.figure(),
    )
    build.build_figure3(files, tmp_path / "figure", standin=[], label="Label")
    assert drawn[0].values("big", "dense-ft", "cot")["AI2D"].value == pytest.approx(55)


def test_figure_3_is_about_one_model(tmp_path):
    files = [write_score(tmp_path, m, "dense", "cot", "AI2D", 50.0) for m in ("big", "small")]
    with pytest.raises(InputError, match="big, small"):
        build.build_figure3(files, tmp_path / "figure", standin=[], label="Label")


def test_ladder_is_sorted_by_ratio_and_leaves_others_out(tmp_path):
    names = ("interlace-25-ft", "interlace-5-ft", "interlace-10-ft", "sleb-25-ft", "interlace-25")
    files = [write_timing(tmp_path, "big", name, "AI2D", 1.1) for name in names]
    assert [v.ratio for v in ladder(load_results(files), "big")] == [5, 10, 25]


def test_breakdown_bars_add_up_to_the_mean(tmp_path):
    file = write_timing(tmp_path, "big", "interlace-25-ft", "AI2D", 1.25)
    figure = draw_breakdown(load_results([file]), MODELS, PAPER, "interlace")
    patches = figure.axes[0].patches
    dense = [p for p in patches if p.get_x() < 0 and p.get_hatch() is None]
    assert len(dense) == 3
    assert sum(p.get_height() for p in dense) == pytest.approx(100)  # percent of Dense's 114 ms
    pruned = [p for p in patches if p.get_hatch()]
    assert sum(p.get_height() for p in pruned) == pytest.approx(
        100 * (0.110 / 1.25 + 0.004) / 0.114
    )


def test_all_figures_are_written_from_files(tmp_path):
    scores, timings = write_paper_as_results(tmp_path / "results")
    timings = [file for file in timings if file.parent.name == "interlace-25-ft"]
    for size in (1, 2, 3):
        write_json(tmp_path / f"pack{size}.json", make_pack(size))
    write_json(tmp_path / "plan.json", make_plan())
    packs = [tmp_path / f"pack{size}.json" for size in (1, 2, 3)]
    out = tmp_path / "figures"
    common = {"standin": STANDIN, "label": "Label"}
    build.build_figure2(tmp_path / "plan.json", out / "figure2_a-12.5", **common)
    build.build_figure3(scores, out / "figure3", **common)
    build.build_figure4({"A": packs, "B": packs}, out / "figure4", standin=STANDIN)
    build_ttft_figures(timings, out, models=MODELS, standin=STANDIN)
    names = ("ttft_speedup", "ttft_breakdown", "ttft_tokens")
    stems = ("figure2_a-12.5", "figure3", "figure4", *names)
    assert all(is_whole(out / stem) for stem in stems)
    assert len(list(out.iterdir())) == 3 * len(stems)


def test_files_are_the_same_every_time(tmp_path, monkeypatch):
    monkeypatch.setitem(STYLE, "pdf.fonttype", FONTS)
    for name in ("a", "b"):
        figure = draw_figure4({"A": [make_pack(size) for size in (1, 2, 3)]}, STANDIN)
        write_figure(figure, tmp_path / name)
    for suffix in ("svg", "pdf", "png"):
        assert (tmp_path / f"a.{suffix}").read_bytes() == (tmp_path / f"b.{suffix}").read_bytes()
    assert b"/FontFile2" in (tmp_path / "a.pdf").read_bytes(), "TrueType: publishers refuse Type 3"


def test_scores_without_windows_are_refused(tmp_path):
    write_json(tmp_path / "pack1.json", {"size": 1})
    with pytest.raises(InputError, match=r"pack1\.json: no windows"):
        build.build_figure4({"A": [tmp_path / "pack1.json"]}, tmp_path / "figure", standin=[])


def test_no_timings_still_make_a_figure_that_says_so(tmp_path):
    figure = draw_breakdown(Results(), MODELS, PAPER, "interlace")
    assert "no TTFT measured" in texts(figure)
    build_ttft_figures([], tmp_path, models=MODELS, standin=[])
    assert is_whole(tmp_path / "ttft_speedup")
