"""What holds for every plan: all methods, both readings, random scores."""

import json
import random
import re

from hypothesis import given, settings
from hypothesis import strategies as st

from interlace.errors import InputError
from interlace.selection.plan import LayerPlan
from interlace.selection.registry import METHODS
from interlace.selection.scores import ScoreTable, read_scores
from interlace.selection.sheet import plan_sheet
from tests.unit.score_tables import (
    RATIOS,
    READINGS,
    expected_count,
    plan,
    random_table,
    random_windows,
    save,
)

tables = st.builds(
    random_table, layers=st.integers(12, 40), seed=st.integers(0, 10**9), ties=st.booleans()
)
methods, readings = st.sampled_from(sorted(METHODS)), st.sampled_from(READINGS)
ONE_BY_ONE = ("sleb", "shortgpt", "shortened_llama")


def plan_or_error(method, scores, **more):
    try:
        return plan(method, 10, scores, **more)
    except InputError as error:
        return error


@settings(deadline=None, max_examples=200)
@given(tables, methods, readings, st.sampled_from(RATIOS))
def test_every_plan_reaches_k_and_gives_each_layer_one_role(s, method, reading, ratio):
    made = plan(method, ratio, s, reading=reading)
    count = expected_count(method, ratio, s.num_layers)
    short = any(w.startswith("only") for w in made.warnings)
    assert short == (made.num_dropped < count)
    assert not short or (method, reading) == ("interlace_oa", "released")
    assert len(made.drop) == made.num_dropped
    tuned = {"dense": s.num_layers // 4, "llm_streamline": 1}.get(method, made.num_dropped)
    assert len(made.tune) == tuned
    assert sorted(made.drop + made.tune + made.freeze) == list(range(s.num_layers))
    covered = [x for t in made.triplets for x in range(t["start"], t["start"] + t["size"])]
    assert len(covered) == len(set(covered))
    for triplet in made.triplets:
        assert triplet["anchor"] is None or triplet["anchor"] in made.freeze
    if reading == "released" and method.startswith("interlace"):
        assert s.num_layers - 1 not in made.drop


@settings(deadline=None, max_examples=100)
@given(tables, methods, readings, st.sampled_from(RATIOS))
def test_what_is_taken_is_taken_by_score(s, method, reading, ratio):
    made = plan(method, ratio, s, reading=reading)
    sizes = [t["size"] for t in made.triplets]
    assert sizes == sorted(sizes, reverse=True)  # pairs only after triplets
    if "exact choice" not in made.how_reached:
        for size in (3, 2):
            scores = [t["score"] for t in made.triplets if t["size"] == size]
            assert scores == sorted(scores, reverse=True)
    if made.order and not made.triplets:
        assert sorted(made.order) == made.drop
        values = made.measures[0]["values"]
        taken = [values[layer] for layer in made.order]
        others = [v for i, v in enumerate(values) if v is not None and i not in made.drop]
        if method in ("shortgpt", "shortened_llama"):
            assert taken == sorted(taken)
            assert max(taken) <= min(others)
        if method == "interlace_tn":
            assert taken == sorted(taken, reverse=True)
    assert bool(made.order) == (method in ONE_BY_ONE or method.startswith("interlace"))


@settings(deadline=None, max_examples=100)
@given(tables, methods, readings)
def test_plans_survive_json_and_have_a_whole_sheet(s, method, reading):
    made = plan(method, 25, s, reading=reading)
    assert LayerPlan.from_dict(json.loads(json.dumps(made.to_dict(), allow_nan=False))) == made
    sheet = plan_sheet(made)
    for layer, role in enumerate(made.roles()):
        assert f"\n| {layer} | {role} |" in sheet
    assert made.how_reached in sheet
    assert all(warning in sheet for warning in made.warnings)


@settings(deadline=None, max_examples=50)
@given(tables, methods, readings, st.randoms())
def test_plans_do_not_depend_on_the_order_of_keys(s, method, reading, rng):
    def shuffled(means):
        items = list(means.items())
        rng.shuffle(items)
        return dict(items)

    other = ScoreTable(
        s.num_layers, shuffled(s.token_means), shuffled(s.sample_means), s.digest, s.calibration
    )
    assert plan(method, 25, s, reading=reading) == plan(method, 25, other, reading=reading)


def test_scores_do_not_depend_on_the_order_of_rows(tmp_path):
    windows = random_windows(12, samples=40)
    order = random.Random(0).sample(range(40), 40)
    other = type(windows)(
        [windows.ids[i] for i in order],
        [windows.subsets[i] for i in order],
        windows.windows,
        windows.sums[order],
        windows.counts[order],
        None,
        windows.info,
    )
    found = [
        read_scores(save(tmp_path / f"{i}.parquet", w), "m", 12)
        for i, w in enumerate((windows, other))
    ]
    assert found[0].token_means == found[1].token_means  # to the last bit
    assert found[0].sample_means == found[1].sample_means
    assert found[0].digest == found[1].digest


@settings(deadline=None, max_examples=150)
@given(tables, methods, readings, st.data())
def test_protected_layers_are_neither_dropped_nor_tuned(s, method, reading, data):
    protect = data.draw(st.sets(st.integers(0, s.num_layers - 1), max_size=4))
    made = plan_or_error(method, s, reading=reading, protect=protect)
    if isinstance(made, InputError):
        assert re.fullmatch(r"(plan\.protect|experiments\.ratios): .+", str(made))
        return
    assert protect.isdisjoint(made.drop + made.tune)
    assert protect <= set(made.freeze)
    assert made.protect == sorted(protect)
