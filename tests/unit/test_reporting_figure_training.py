"""The curves of fine-tuning, from the lines that a checkpoint carries."""

import json
import math

import matplotlib.pyplot as plt
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from interlace.errors import InputError
from interlace.reporting.figure_training import (
    build_overview,
    build_training_figure,
    column,
    draw_overview,
    draw_training,
    read_steps,
    smooth,
    window_of,
)
from interlace.reporting.figures import STYLE
from tests.unit.reporting_results import STANDIN, texts


@pytest.fixture(autouse=True)
def _figures_of_tests(monkeypatch):
    monkeypatch.setitem(STYLE, "pdf.fonttype", 3)  # to embed subsets of fonts takes seconds
    yield
    plt.close("all")


def make_steps(count, *, speed=False, **changes):
    """Return the lines of a run: loss 3 falling towards 1, and more where `speed` was logged."""
    steps = []
    for i in range(count):
        share = i / count
        entry = {"step": i + 1, "epoch": share, "loss": 1 + 2 * math.exp(-5 * share)}
        entry |= {"learning_rate": 1e-5 * (1 - share), "grad_norm": 1.5}
        if speed:
            entry |= {"tokens_per_s": 9000.0, "samples_per_s": 30.0, "memory_mb": 61000 + i}
            entry |= {"supervised_tokens": 500, "supervised_tokens_per_s": 2500.0}
        steps.append(entry | changes)
    return steps


def write_steps(folder, steps):
    folder.mkdir(parents=True)
    (folder / "training.jsonl").write_text("".join(json.dumps(step) + "\n" for step in steps))
    return folder


def labels_of(figure):
    return [axes.get_ylabel() for axes in figure.axes]


def test_the_lines_of_today_make_three_panels_and_more_keys_a_fourth():
    old, new = draw_training(make_steps(5), "t"), draw_training(make_steps(5, speed=True), "t")
    assert labels_of(old) == ["Loss", "Learning rate", "Gradient norm"]
    assert labels_of(new) == [*labels_of(old), "Tokens/s"]
    assert {"all", "supervised"} <= set(new.axes[3].get_legend_handles_labels()[1])
    assert "most memory held 61.0 GB" in new.axes[3].get_xlabel()
    assert new.axes[3].get_ylim()[1] > 9000


def test_a_long_run_shows_every_step_light_and_the_mean_dark():
    steps = make_steps(3000)
    figure = draw_training(steps, "t")
    raw, mean = figure.axes[0].lines
    assert list(raw.get_ydata()) == [step["loss"] for step in steps]
    assert raw.get_alpha() < 1
    assert raw.get_rasterized()
    assert len(mean.get_xdata()) <= 500
    assert (mean.get_xdata()[0], mean.get_xdata()[-1]) == (1, 3000)
    assert "mean over 61 steps" in texts(figure)
    (short,) = draw_training(make_steps(5), "t").axes[0].lines
    assert list(short.get_ydata()) == [step["loss"] for step in make_steps(5)]


def test_a_loss_that_falls_a_lot_has_a_logarithmic_axis():
    steep = [entry | {"loss": 10 ** (1 - i / 60)} for i, entry in enumerate(make_steps(60))]
    assert draw_training(steep, "t").axes[0].get_yscale() == "log"
    assert draw_training(make_steps(60), "t").axes[0].get_yscale() == "linear"


def test_one_step_far_off_does_not_flatten_the_others():
    steps = make_steps(500)
    for spike, most in ((40.0, 5.0), (500.0, 60.0)):  # the mean over 11 steps rises by 1/11 of it
        steps[250]["loss"] = spike
        assert draw_training(steps, "t").axes[0].get_ylim()[1] < most


def test_what_is_not_finite_or_missing_is_a_gap_and_counted():
    steps = make_steps(10)
    steps[3]["loss"], steps[4]["loss"] = math.nan, None
    del steps[5]["grad_norm"]
    figure = draw_training(steps, "title")
    assert (
        figure.axes[0]
        .get_title(loc="left")
        .startswith("title, 10 steps (2 of them without a finite loss), loss 3 at first")
    )
    assert np.isnan(figure.axes[0].lines[0].get_ydata()).sum() == 2
    empty = draw_training(make_steps(3, loss=math.inf, grad_norm=None), "title")
    assert {"no finite loss", "not logged"} <= set(texts(empty).split("\n"))


@given(
    st.lists(st.one_of(st.floats(-1e3, 1e3), st.just(math.nan)), min_size=1, max_size=40),
    st.integers(0, 6).map(lambda half: 2 * half + 1),
)
def test_smoothing_is_the_mean_of_the_neighbours(values, window):
    values = np.array(values)
    smoothed = smooth(values, window)
    for i, mean in enumerate(smoothed):
        back = min(i, window // 2)
        near = values[i - back : i + back + 1]
        near = near[~np.isnan(near)]
        assert math.isnan(mean) == (len(near) == 0)
        if len(near):
            assert mean == pytest.approx(near.mean(), rel=1e-12)


@pytest.mark.parametrize(("steps", "window"), [(5, 1), (49, 1), (200, 5), (3000, 61), (7573, 151)])
def test_the_window_is_odd_and_one_in_fifty(steps, window):
    assert window_of(steps) == window


def test_steps_are_read_in_order_and_one_done_again_counts_last(tmp_path):
    steps = make_steps(3)
    again = {**steps[1], "loss": 9.0}
    folder = write_steps(tmp_path / "a", [*steps, again])
    read = read_steps(folder / "training.jsonl")
    assert [entry["step"] for entry in read] == [1, 2, 3]
    assert list(column(read, "loss")) == [steps[0]["loss"], 9.0, steps[2]["loss"]]
    assert column(read, "tokens_per_s") is None


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ('{"step": 1, "loss": 2}\n{"step": 2, "lo', "line 2 is not the record of a step"),
        ('{"loss": 2}\n', "line 1 is not"),
        ("[1]\n", "line 1 is not"),
        ("", "no step in it"),
        (None, "no such file"),
    ],
)
def test_what_is_no_log_is_refused_in_one_line(tmp_path, text, words):
    path = tmp_path / "training.jsonl"
    if text is not None:
        path.write_text(text)
    with pytest.raises(InputError, match=rf"training\.jsonl: {words}") as caught:
        read_steps(path)
    assert "\n" not in str(caught.value)


def write_curves(folder, stem):
    build_training_figure(folder, stem, model="M", variant="interlace-25-ft", standin=STANDIN)


def test_figures_are_written_from_checkpoints_and_the_same_every_time(tmp_path):
    folder = write_steps(tmp_path / "interlace-25-ft", make_steps(120, speed=True))
    for name in ("a.b", "c.d"):
        write_curves(folder, tmp_path / name)
    for suffix in ("svg", "pdf", "png"):
        one, other = (tmp_path / f"{name}.{suffix}" for name in ("a.b", "c.d"))
        assert one.read_bytes() == other.read_bytes()


def test_many_steps_make_no_large_file(tmp_path):
    write_curves(write_steps(tmp_path / "run", make_steps(2100)), tmp_path / "figure")
    assert (tmp_path / "figure.svg").stat().st_size < 400_000


def test_the_overview_has_a_panel_per_model_and_one_colour_per_variant(tmp_path):
    runs = {
        name: write_steps(tmp_path / name, make_steps(100))
        for name in ("dense-ft", "sleb-25-ft", "interlace-10-ft")
    }
    steps = {name: read_steps(folder / "training.jsonl") for name, folder in runs.items()}
    small = {"interlace-10-ft": steps["interlace-10-ft"]}
    figure = draw_overview({"Big": steps, "Small": small}, STANDIN)
    left, right = figure.axes
    assert (len(left.lines), len(right.lines)) == (3, 1)
    assert left.lines[2].get_color() == right.lines[0].get_color()
    assert len({line.get_color() for line in left.lines}) == 3
    shown = [text.get_text() for text in figure.legends[0].get_texts()]
    assert shown == ["Dense-FT", "SLEB-FT 25 %", "INTERLACE 10 %"]
    assert "Stand-in" in texts(figure)
    assert left.get_ylabel() == "Loss (smoothed)"
    short = {"interlace-10-ft": make_steps(10)}  # not smoothed, and drawn last
    assert draw_overview({"Big": steps, "Small": short}).axes[0].get_ylabel() == "Loss (smoothed)"
    assert draw_overview({"Small": short}).axes[0].get_ylabel() == "Loss"
    build_overview({"Big": runs}, tmp_path / "overview", standin=[])
    assert (tmp_path / "overview.svg").exists()
    with pytest.raises(InputError, match="no fine-tuned checkpoint"):
        build_overview({}, tmp_path / "none", standin=[])
