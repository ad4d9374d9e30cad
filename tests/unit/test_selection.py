"""Plans: the paper's rules by hand and by exhaustive search, and properties over random scores."""

import itertools
import json
import random
import re
import subprocess
import sys

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from interlace.decoder.ratio import num_dropped
from interlace.errors import InputError
from interlace.io import write_json
from interlace.selection.method import Choice, Method
from interlace.selection.plan import LayerPlan, make_plan, read_plan, write_plan
from interlace.selection.registry import METHODS
from interlace.selection.scores import ScoreTable, read_scores
from interlace.selection.sheet import layer_roles, plan_sheet
from interlace.selection.triplets import take_exactly, take_greedily

RATIOS = (10, 15, 20, 25)


def table(single, pairs=None, triplets=None):
    layers = len(single)
    packs = {1: list(single), 2: list(pairs or [0.0] * (layers - 1))}
    return ScoreTable(layers, packs | {3: list(triplets or [0.0] * (layers - 2))})


def random_table(layers, seed, ties=False):
    rng = random.Random(seed)
    values = [0.25, 0.5, 0.75] if ties else None
    draw = (lambda: rng.choice(values)) if ties else rng.random
    return ScoreTable(layers, {k: [draw() for _ in range(layers - k + 1)] for k in (1, 2, 3)})


def plan(method, ratio, scores, **more):
    return make_plan(method, ratio, scores, num_layers=scores.num_layers, **more)


def plan_or_error(method, scores, **more):
    try:
        return plan(method, 10, scores, **more)
    except InputError as error:
        return error


tables = st.builds(
    random_table, layers=st.integers(12, 40), seed=st.integers(0, 10**9), ties=st.booleans()
)


# The paper's rules, by hand


def test_interlace_takes_triplets_by_score_and_drops_the_more_similar_of_the_first_two():
    triplets = [0.0] * 10
    triplets[2], triplets[3], triplets[7] = 0.9, 0.95, 0.8  # 2 overlaps 3, 3 overlaps 2
    single = [0.0] * 12
    single[3], single[4] = 0.3, 0.6
    single[7], single[8] = 0.6, 0.3
    made = plan("interlace", 17, table(single, triplets=triplets))
    assert made.triplets == [
        {"start": 3, "size": 3, "score": 0.95, "drop": 4, "tune": 3, "anchor": 5},
        {"start": 7, "size": 3, "score": 0.8, "drop": 7, "tune": 8, "anchor": 9},
    ]
    assert (made.drop, made.tune, made.num_dropped) == ([4, 7], [3, 8], 2)
    assert made.freeze == [0, 1, 2, 5, 6, 9, 10, 11]
    assert layer_roles(made)[3:10] == ["tune", "drop", "anchor", "freeze", "drop", "tune", "anchor"]


@pytest.mark.parametrize(("reading", "drop"), [("paper", 6), ("released", 5)])
def test_a_tie_drops_the_second_in_the_paper_and_the_first_in_the_code(reading, drop):
    triplets = [0.0] * 10
    triplets[5] = 1.0
    made = plan("interlace", 10, table([0.5] * 12, triplets=triplets), reading=reading)
    assert made.drop == [drop]


def test_the_last_layer_is_scored_by_the_paper_only():
    triplets = [0.0] * 9 + [1.0]
    single = [0.0] * 11 + [1.0]
    for reading, anchors in (("paper", [11]), ("released", [2])):
        made = plan("interlace", 10, table(single, triplets=triplets), reading=reading)
        assert [t["anchor"] for t in made.triplets] == anchors
        turned = plan("interlace_tn", 10, table(single), reading=reading)
        assert (11 in turned.drop) is (reading == "paper")


def test_oa_goes_by_position():
    triplets = [0.0] * 10
    triplets[4] = 1.0
    single = [0.0] * 5 + [1.0] + [0.0] * 6
    made = plan("interlace_oa", 10, table(single, triplets=triplets))
    assert (made.drop, made.tune, made.triplets[0]["anchor"]) == ([4], [5], 6)


def test_tn_tunes_the_layer_after_each_drop():
    single = [0.0] * 16
    single[3], single[9], single[10], single[15] = 0.7, 0.9, 0.8, 0.6
    made = plan("interlace_tn", 25, table(single))
    assert made.drop == [3, 9, 10, 15]
    # 9 takes 11 since 10 is dropped, 10 the next free, 3 its successor; nothing follows 15.
    assert made.tune == [4, 11, 12, 14]
    released = plan("interlace_tn", 25, table(single), reading="released")
    # 10 is passed over: it is tuned for 9. 15 is never scored.
    assert released.drop[:1] == [0]
    assert {3, 9} < set(released.drop)
    assert {4, 10} < set(released.tune)


def test_consecutive_drops_the_best_block_and_tunes_what_follows():
    single = [0.1] * 12
    single[2] = 0.9
    single[7:10] = [0.5, 0.6, 0.5]
    made = plan("consecutive", 25, table(single))
    assert (made.drop, made.tune) == ([7, 8, 9], [6, 10, 11])
    assert "only 2 layers follow" in made.how_reached
    released = plan("consecutive", 25, table(single), reading="released")
    assert (released.drop, released.tune) == ([2, 3, 4], [5, 6, 7])
    late = plan("consecutive", 25, table([0.1] * 10 + [0.9, 0.1]), reading="released")
    assert late.drop == [9, 10, 11]
    assert "past the last" in late.warnings[0]


def test_random_is_seeded_and_its_tuned_layers_have_a_stream_of_their_own():
    plans = [make_plan("random", 25, num_layers=36, seed=seed) for seed in (0, 0, 1)]
    assert plans[0] == plans[1]
    assert plans[0].drop != plans[2].drop
    assert make_plan("random", 25, num_layers=36, seed=0).tune == plans[0].tune
    frequency = [0] * 12
    for seed in range(600):
        for layer in make_plan("random", 25, num_layers=12, seed=seed).drop:
            frequency[layer] += 1
    assert min(frequency) > 110  # 150 expected, standard deviation 10.6
    assert max(frequency) < 190


def test_dense_tunes_the_last_quarter():
    made = make_plan("dense", None, num_layers=36)
    assert (made.drop, made.tune, made.ratio) == ([], list(range(27, 36)), None)


def test_sleb_drops_its_first_removals_and_tunes_as_many():
    made = make_plan("sleb", 25, num_layers=12, removals=[5, 6, 10, 2])
    assert (made.drop, made.tune) == ([5, 6, 10], [7, 8, 11])
    with pytest.raises(InputError, match="holds 2 removals, 3 are needed"):
        make_plan("sleb", 25, num_layers=12, removals=[5, 6])
    with pytest.raises(InputError, match="protected layer 6"):
        make_plan("sleb", 25, num_layers=12, removals=[5, 6, 10], protect=[6])


# Where greedy runs out


def blocking_table(layers=12):
    """Greedy takes the triplets at 2 and 7 and finds gaps of two layers only."""
    triplets = [0.1 + start / 1000 for start in range(layers - 2)]
    triplets[2], triplets[7] = 0.9, 0.8
    single = [start / 100 for start in range(layers)]
    return table(single, [0.2 + s / 100 for s in range(layers - 1)], triplets)


def test_paper_completes_exactly_and_keeps_what_greedy_took():
    scores = blocking_table()
    windows = scores.windows(3, "paper")
    assert take_greedily(windows, 3, 3) == [2, 7]
    made = plan("interlace", 25, scores)
    assert made.num_dropped == 3
    assert [t["start"] for t in made.triplets] == [2, 9, 6]  # keeps 2; 6 and 9 beat all others
    assert "keeps most of greedy's (1 of 2)" in made.how_reached


def test_released_goes_on_with_pairs_and_oa_stops_short():
    made = plan("interlace", 25, blocking_table(), reading="released")
    assert made.num_dropped == 3
    assert made.triplets[-1] | {"score": 0} == {
        "start": 5, "size": 2, "score": 0, "drop": 6, "tune": 5, "anchor": None,
    }  # fmt: skip
    short = plan("interlace_oa", 25, blocking_table(), reading="released")
    assert short.num_dropped == len(short.drop) == 2
    assert "only 2 of 3 layers" in short.warnings[0]


@settings(deadline=None)
@given(
    st.integers(3, 13).flatmap(
        lambda layers: st.lists(st.integers(0, 20), min_size=layers - 2, max_size=layers - 2)
    ),
    st.data(),
)
def test_exact_choice_equals_exhaustive_search(values, data):
    windows = dict(enumerate(values))
    for start in data.draw(st.sets(st.sampled_from(range(len(values))), max_size=3)):
        del windows[start]
    prefer = data.draw(st.sets(st.sampled_from(range(len(values)))))
    count = data.draw(st.integers(1, (len(values) + 2) // 3))
    best = None
    for starts in itertools.combinations(sorted(windows), count):
        if all(right - left >= 3 for left, right in itertools.pairwise(starts)):
            key = (len(prefer.intersection(starts)), sum(windows[start] for start in starts))
            best = key if best is None else max(best, key)
    found = take_exactly(windows, 3, count, prefer)
    if best is None:
        assert found is None
    else:
        assert all(right - left >= 3 for left, right in itertools.pairwise(found))
        value = (len(prefer.intersection(found)), sum(windows[start] for start in found))
        assert value == best


# Properties


@settings(deadline=None, max_examples=60)
@given(
    tables,
    st.sampled_from([m for m, entry in METHODS.items() if entry.needs_scores]),
    st.sampled_from(["paper", "released"]),
    st.sampled_from(RATIOS),
)
def test_every_plan_reaches_k_gives_each_layer_one_role_and_survives_json(
    s, method, reading, ratio
):
    made = plan(method, ratio, s, reading=reading)
    short = any("only" in warning for warning in made.warnings)
    assert short == (made.num_dropped < num_dropped(ratio, s.num_layers))
    assert not short or (method, reading) == ("interlace_oa", "released")
    assert len(made.tune) == len(made.drop) == made.num_dropped
    assert sorted(made.drop + made.tune + made.freeze) == list(range(s.num_layers))
    covered = [x for t in made.triplets for x in range(t["start"], t["start"] + t["size"])]
    assert len(covered) == len(set(covered))
    for triplet in made.triplets:
        assert triplet["anchor"] is None or triplet["anchor"] in made.freeze
    if "exact" not in made.how_reached and "pairs" not in made.how_reached:
        order = [t["score"] for t in made.triplets]
        assert order == sorted(order, reverse=True)
    assert LayerPlan.from_dict(json.loads(json.dumps(made.to_dict()))) == made
    assert plan_sheet(made, s).count("\n| ") >= s.num_layers


@settings(deadline=None, max_examples=30)
@given(tables, st.randoms())
def test_plans_do_not_depend_on_the_order_of_keys(s, rng):
    packs = list(s.packs.items())
    rng.shuffle(packs)
    assert plan("interlace", 25, s) == plan("interlace", 25, ScoreTable(s.num_layers, dict(packs)))


@settings(deadline=None, max_examples=60)
@given(tables, st.sampled_from(sorted(METHODS)), st.sampled_from(["paper", "released"]), st.data())
def test_protected_layers_are_neither_dropped_nor_tuned(s, method, reading, data):
    layers = s.num_layers
    protect = data.draw(st.sets(st.integers(0, layers - 1), max_size=4))
    order = [layer for layer in range(1, layers - 1) if layer not in protect]
    made = plan_or_error(method, s, reading=reading, protect=protect, removals=order)
    if isinstance(made, InputError):
        assert re.match(r"(plan\.protect|experiments\.ratios): ", str(made))
        return
    assert protect.isdisjoint(made.drop + made.tune)
    assert protect <= set(made.freeze)


# Bad input


@pytest.mark.parametrize("ratio", [0, 1, 2.7, 37, 100])
def test_ratios_that_drop_nothing_or_more_than_a_third_name_their_key(ratio):
    with pytest.raises(InputError, match=r"experiments\.ratios: "):
        num_dropped(ratio, 36)


def test_ratios_of_the_paper():
    assert [num_dropped(ratio, 36) for ratio in RATIOS] == [3, 5, 7, 9]
    assert num_dropped(12.5, 24) == 3
    assert num_dropped(28.7, 1000) == 287  # 28.7 * 1000 / 100 is 286.99... in floats
    assert num_dropped(34, 36) == 12  # exactly a third


def test_unknown_names_and_missing_scores():
    with pytest.raises(InputError, match=r"experiments\.methods: `interlase` is none of interlace"):
        make_plan("interlase", 25, num_layers=36)
    with pytest.raises(InputError, match="interlace: needs similarity scores"):
        make_plan("interlace", 25, num_layers=36)
    with pytest.raises(InputError, match=r"sleb: needs sleb\.json"):
        make_plan("sleb", 25, num_layers=36)
    with pytest.raises(InputError, match=r"plan\.protect: layer 36"):
        make_plan("random", 25, num_layers=36, protect=[36])
    with pytest.raises(InputError, match=r"plan\.reading: `both`"):
        make_plan("random", 25, num_layers=36, reading="both")


def write_packs(folder, scores, model="m"):
    for size, values in scores.packs.items():
        windows = [
            {"start": i, "token_mean": v, "sample_mean": 1 - v, "text_mean": v, "visual_mean": None}
            for i, v in enumerate(values)
        ]
        body = {"model": model, "size": size, "num_layers": scores.num_layers, "windows": windows}
        write_json(folder / f"pack{size}.json", body)


def write_config(folder, layers, deepstack=3):
    write_json(
        folder / "config.json",
        {
            "text_config": {"num_hidden_layers": layers},
            "vision_config": {"deepstack_visual_indexes": list(range(deepstack))},
        },
    )


def test_write_plan_reads_packs_and_writes_plan_and_sheet(tmp_path):
    scores = random_table(36, 0)
    write_packs(tmp_path / "scores", scores)
    write_config(tmp_path / "base", 36)
    for reading, table_ in (
        ("paper", scores),
        ("released", ScoreTable(36, {k: [1 - v for v in p] for k, p in scores.packs.items()})),
    ):
        out = tmp_path / "plans" / f"{reading}.json"
        write_plan(
            "interlace", 25, tmp_path / "scores", None, tmp_path / "base", out,
            {"reading": reading, "protect": []}, model_key="m", seed=0, config_digest="d",
        )  # fmt: skip
        made = read_plan(out, num_layers=36)
        assert made.drop == plan("interlace", 25, table_, reading=reading).drop
        assert made.scores_digest
        assert ("whole conversations" in made.how_reached) is (reading == "released")
        assert json.loads(out.read_text())["provenance"]["config_digest"] == "d"
        assert f"reading `{reading}`" in out.with_suffix(".md").read_text()
    with pytest.raises(InputError, match="a plan for 36 layers, the model has 27"):
        read_plan(out, num_layers=27)
    body = json.loads(out.read_text())
    write_json(out, body | {"tune": body["tune"][1:]})
    with pytest.raises(InputError, match=r"released\.json: not a valid plan"):
        read_plan(out)


def test_dropping_a_deepstack_layer_is_warned_of(tmp_path):
    write_config(tmp_path, 12)
    write_json(
        tmp_path / "sleb.json",
        {"model": "m", "num_layers": 12, "removals": [{"layer": i} for i in (1, 7, 2)]},
    )
    out = tmp_path / "p.json"
    arguments = ("sleb", 25, None, tmp_path / "sleb.json", tmp_path / "config.json", out)
    made = write_plan(*arguments, {}, model_key="m", seed=0)
    assert "DeepStack" in made.warnings[0]
    assert "dropping layer 1, 2 " in made.warnings[0]
    assert made.warnings[0] in out.with_suffix(".md").read_text()
    assert not make_plan("sleb", 25, num_layers=12, removals=[3, 4, 5], num_deepstack=3).warnings
    with pytest.raises(InputError, match="a search on m, 12 layers; needed is other, 12"):
        write_plan(*arguments, {}, model_key="other", seed=0)


def test_wrong_score_files_are_refused(tmp_path):
    write_packs(tmp_path, random_table(12, 0))
    read_scores(tmp_path, "paper", "m", 12)
    with pytest.raises(InputError, match=r"pack1\.json: scores of m, 12 layers.*needed are other"):
        read_scores(tmp_path, "paper", "other", 12)
    with pytest.raises(InputError, match="needed are m, 36 layers"):
        read_scores(tmp_path, "paper", "m", 36)
    body = json.loads((tmp_path / "pack3.json").read_text())
    (tmp_path / "pack3.json").write_text(json.dumps(body).replace("0.", 'NaN, "x": 0.', 1))
    with pytest.raises(InputError, match=r"pack3\.json: token_mean of window 0 is nan"):
        read_scores(tmp_path, "paper", "m", 12)
    write_json(tmp_path / "pack3.json", body | {"windows": body["windows"][:-1]})
    with pytest.raises(InputError, match=r"pack3\.json: window 9 is missing"):
        read_scores(tmp_path, "paper", "m", 12)
    (tmp_path / "pack2.json").unlink()
    with pytest.raises(InputError, match=r"pack2\.json: no such file"):
        read_scores(tmp_path, "paper", "m", 12)


def test_a_new_method_is_one_entry(monkeypatch):
    def choose(request):
        drop = request.free()[: request.num_dropped]
        return Choice(drop, request.free()[-request.num_dropped :], "from the front")

    monkeypatch.setitem(METHODS, "toy", Method(choose, "Toy"))
    assert make_plan("toy", 25, num_layers=12, protect=[0]).drop == [1, 2, 3]


def test_planning_needs_no_torch():
    code = "import sys, interlace.selection.plan; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0
