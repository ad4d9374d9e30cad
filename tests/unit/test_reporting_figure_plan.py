"""Figure 2 of every kind of plan: roles, order, scores, and values far off the rest."""

import matplotlib.pyplot as plt
import numpy as np
import pytest

from interlace.errors import InputError
from interlace.io import write_json
from interlace.reporting import build
from interlace.reporting.figure_plan import draw_plan
from interlace.reporting.figures import STYLE
from interlace.selection.plan import LayerPlan
from interlace.selection.registry import METHODS
from tests.unit.reporting_results import STANDIN, make_plan, texts
from tests.unit.score_tables import plan, random_table


@pytest.fixture(autouse=True)
def _figures_of_tests(monkeypatch):
    monkeypatch.setitem(STYLE, "pdf.fonttype", 3)  # to embed subsets of fonts takes seconds
    yield
    plt.close("all")


def given(**changes):
    return LayerPlan.from_dict(make_plan() | changes)


def with_values(*values):
    return [m | {"values": v} for m, v in zip(make_plan()["measures"], values, strict=True)]


def written(figure):
    return texts(figure).splitlines()


def test_it_shows_the_plan():
    figure = draw_plan(given(), "Label", STANDIN)
    assert "Label: INTERLACE 25 %, 9 of 36 layers dropped" in written(figure)
    assert "Stand-in: models, benchmarks" in texts(figure)
    letters = [line for line in written(figure) if line in ("D", "T", "A")]
    assert {letter: letters.count(letter) for letter in "DTA"} == {"D": 9, "T": 9, "A": 9}
    assert {str(number) for number in range(1, 10)} <= set(written(figure))
    assert "tand-in" not in texts(draw_plan(given(), "Label"))


def test_a_window_of_two_layers_is_shaded_as_two():
    pair = {"start": 30, "size": 2, "score": 0.9, "drop": 30, "tune": 31, "anchor": None}
    rest = [layer for layer in range(36) if layer not in (30, 31)]
    figure = draw_plan(
        given(triplets=[pair], drop=[30], order=[30], tune=[31], num_dropped=1, freeze=rest),
        "Label",
    )
    (band,) = figure.axes[0].patches
    assert (band.get_x(), band.get_width()) == (pytest.approx(29.56), pytest.approx(1.88))
    assert "triplet taken" not in texts(figure)


@pytest.mark.parametrize("reading", ["paper", "released"])
@pytest.mark.parametrize("method", sorted(METHODS))
def test_every_method_has_its_figure(method, reading):
    made = plan(method, 25, random_table(36, 3), reading=reading, protect=[4])
    figure = draw_plan(made, "Label")
    assert any(METHODS[method].label in line for line in written(figure))
    letters = [line for line in written(figure) if line in ("D", "T")]
    assert letters.count("D") == len(made.drop)
    assert letters.count("T") == len(made.tune)
    if not made.measures:
        assert len(figure.axes) == 1
        return
    top = figure.axes[0]
    label = top.get_ylabel()
    assert label.lower() == made.measures[0]["unit"].lower()
    for line, measure in zip(top.lines, made.measures, strict=False):
        x, y = line.get_data()
        known = [(i, v) for i, v in enumerate(measure["values"]) if v is not None]
        middle = (measure["size"] - 1) / 2
        assert list(x[np.isfinite(y)]) == [i + middle for i, _ in known]
        assert list(y[np.isfinite(y)]) == [v for _, v in known]
    if made.order:
        assert {str(i + 1) for i in range(len(made.order))} <= set(written(figure))


def test_one_value_far_off_does_not_flatten_the_rest():
    triplet = [0.98 + 0.0001 * i for i in range(34)]
    measures = with_values([0.21, *[0.99 + 0.0001 * i for i in range(1, 36)]], triplet)
    figure = draw_plan(given(measures=measures), "Label")
    low, high = figure.axes[0].get_ylim()
    assert 0.97 < low < 0.98
    assert 0.99 < high < 1.0
    assert "0.21" in written(figure)
    # One that is off by less than the rest spreads stays in.
    measures = with_values([0.97, *[0.99 + 0.0001 * i for i in range(1, 36)]], triplet)
    figure = draw_plan(given(measures=measures), "Label")
    assert figure.axes[0].get_ylim()[0] < 0.97
    assert "0.97" not in written(figure)
    # Where more than a sixth lies far off, that is how the scores are.
    measures = with_values([0.2] * 8 + [0.99 + 0.0001 * i for i in range(28)], triplet)
    assert draw_plan(given(measures=measures), "Label").axes[0].get_ylim()[0] < 0.2


def test_scores_that_are_all_the_same_have_a_range():
    measures = with_values([0.5] * 36, [0.5] * 34)
    low, high = draw_plan(given(measures=measures), "Label").axes[0].get_ylim()
    assert low < 0.5 < high


def test_a_plan_that_is_none_makes_no_figure(tmp_path):
    write_json(tmp_path / "plan.json", make_plan() | {"num_layers": 12})
    with pytest.raises(InputError, match=r"plan\.json: not a valid plan"):
        build.build_figure2(tmp_path / "plan.json", tmp_path / "f", standin=[], label="x")
    assert not list(tmp_path.glob("f*"))
