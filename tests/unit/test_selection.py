"""The five strategies of the paper in both readings, row by row of what the two say (README)."""

import itertools

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from interlace.errors import InputError
from interlace.selection.plan import make_plan
from interlace.selection.triplets import take_exactly, take_greedily
from tests.unit.score_tables import READINGS, plan, table


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
    assert made.order == [4, 7]
    assert made.freeze == [0, 1, 2, 5, 6, 9, 10, 11]
    assert made.roles()[3:10] == ["tune", "drop", "anchor", "freeze", "drop", "tune", "anchor"]


# Row "windows": the paper scores all L-2 triplets, the code starts 0..L-4 (pack 1 and 2 the same).


@pytest.mark.parametrize("method", ["interlace", "interlace_oa", "interlace_optimal"])
@pytest.mark.parametrize(("reading", "anchors"), [("paper", [11]), ("released", [2])])
def test_the_released_triplets_stop_before_the_last_layer(method, reading, anchors):
    made = plan(method, 10, table([0.0] * 12, triplets=[0.0] * 9 + [1.0]), reading=reading)
    assert [t["anchor"] for t in made.triplets] == anchors


@pytest.mark.parametrize("reading", READINGS)
def test_the_released_pack_1_stops_before_the_last_layer(reading):
    scores = table([0.1] * 5 + [0.2] + [0.1] * 5 + [1.0])
    for method in ("interlace_tn", "shortgpt"):
        drop = plan(method, 10, scores, reading=reading).drop
        assert drop == ([11] if reading == "paper" else [5])
    drop = plan("consecutive", 10, scores, reading=reading).drop
    assert drop == ([11] if reading == "paper" else [5])


def test_the_released_pack_2_stops_before_the_last_layer():
    # Greedy takes 0, 3 and 6 of 12 layers; 9, 10 and 11 are left for a pair.
    triplets = [0.9, 0, 0, 0.8, 0, 0, 0.7, 0, 0, 0]
    scores = table([0.0] * 12, [0.1] * 9 + [0.2, 1.0], triplets)
    made = plan("interlace", 33.4, scores, reading="released")
    assert (made.triplets[-1]["size"], made.triplets[-1]["start"]) == (2, 9)
    assert 11 in made.freeze
    paper = plan("interlace", 33.4, scores)
    assert [t["start"] for t in paper.triplets] == [0, 3, 6, 9]


# Row "mean": over all tokens, or over a sample's tokens and then over samples.


@pytest.mark.parametrize(("reading", "drop"), [("paper", [3]), ("released", [8])])
def test_the_paper_goes_by_tokens_the_code_by_samples(reading, drop):
    by_token, by_sample = ([0.0] * 12 for _ in range(2))
    by_token[3], by_sample[8] = 1.0, 1.0
    scores = table(by_token)
    scores = type(scores)(12, scores.token_means, {**scores.sample_means, 1: by_sample})
    assert plan("interlace_tn", 10, scores, reading=reading).drop == drop


# Row "too few disjoint triplets": not treated by the paper; pairs, and no fallback for OA.


def blocking_table(layers=12):
    """Greedy takes the triplets at 2 and 7 and finds gaps of two layers only."""
    triplets = [0.1 + start / 1000 for start in range(layers - 2)]
    triplets[2], triplets[7] = 0.9, 0.8
    single = [start / 100 for start in range(layers)]
    return table(single, [0.2 + s / 100 for s in range(layers - 1)], triplets)


def test_paper_completes_exactly_and_keeps_what_greedy_took():
    scores = blocking_table()
    windows = dict(enumerate(scores.read(3, "paper")))
    assert take_greedily(windows, 3, 3) == [2, 7]
    made = plan("interlace", 25, scores)
    assert made.num_dropped == 3
    assert [t["start"] for t in made.triplets] == [2, 9, 6]  # keeps 2; 6 and 9 beat all others
    assert "keeps most of greedy's (1 of 2)" in made.how_reached
    by_position = plan("interlace_oa", 25, scores)
    assert [t["start"] for t in by_position.triplets] == [2, 9, 6]


def test_keeping_what_greedy_took_comes_before_the_total():
    triplets = [n / 16 for n in (2, 4, 9, 2, 6, 9, 4, 7, 1, 1, 8, 0, 1)]
    scores = table([0.0] * 15, triplets=triplets)
    assert take_greedily(dict(enumerate(triplets)), 3, 4) == [2, 5, 10]
    made = plan("interlace", 27, scores)
    assert [t["start"] for t in made.triplets] == [2, 5, 8, 12]  # total 20/16, two of greedy's kept
    best = plan("interlace_optimal", 27, scores)
    assert [t["start"] for t in best.triplets] == [10, 7, 4, 1]  # total 25/16, one of them


def test_released_goes_on_with_pairs_and_oa_stops_short():
    made = plan("interlace", 25, blocking_table(), reading="released")
    assert made.num_dropped == 3
    assert made.triplets[-1] | {"score": 0} == {
        "start": 5, "size": 2, "score": 0, "drop": 6, "tune": 5, "anchor": None,
    }  # fmt: skip
    assert "then 1 pack-2 pairs" in made.how_reached
    short = plan("interlace_oa", 25, blocking_table(), reading="released")
    assert short.num_dropped == len(short.drop) == 2
    assert "only 2 of 3 layers" in short.warnings[0]


# Row "tie S(i) = S(i+1)": the paper drops i+1, the code i.


@pytest.mark.parametrize(("reading", "drop"), [("paper", 6), ("released", 5)])
def test_a_tie_drops_the_second_in_the_paper_and_the_first_in_the_code(reading, drop):
    triplets = [0.0] * 10
    triplets[5] = 1.0
    made = plan("interlace", 10, table([0.5] * 12, triplets=triplets), reading=reading)
    assert made.drop == [drop]
    exact = plan("interlace_optimal", 10, table([0.5] * 12, triplets=triplets), reading=reading)
    assert exact.drop == [drop]


# Row "consecutive": the block of the highest sum, or K layers from the most similar one on.


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


# Row "TN": tune the layer after each drop, or pass over a layer if it or its successor is assigned.


def test_tn_tunes_the_layer_after_each_drop():
    single = [0.0] * 16
    single[3], single[9], single[10], single[15] = 0.7, 0.9, 0.8, 0.6
    made = plan("interlace_tn", 25, table(single))
    assert made.order == [9, 10, 3, 15]
    # 9 takes 11 since 10 is dropped, 10 the next free, 3 its successor; nothing follows 15.
    assert made.tune == [4, 11, 12, 14]
    released = plan("interlace_tn", 25, table(single), reading="released")
    # 10 is passed over: it is tuned for 9. 15 is never scored. 0 and 5 are the first of the ties.
    assert released.order == [9, 3, 0, 5]
    assert released.tune == [1, 4, 6, 10]


# OA and Random


def test_oa_goes_by_position():
    triplets = [0.0] * 10
    triplets[4] = 1.0
    single = [0.0] * 5 + [1.0] + [0.0] * 6
    made = plan("interlace_oa", 10, table(single, triplets=triplets))
    assert (made.drop, made.tune, made.triplets[0]["anchor"]) == ([4], [5], 6)


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


def test_equal_triplets_are_taken_from_the_front():
    made = plan("interlace", 25, table([0.5] * 12, triplets=[0.5] * 10))
    assert [t["start"] for t in made.triplets] == [0, 3, 6]


# The exact choice


def disjoint_choices(windows, count):
    for starts in itertools.combinations(sorted(windows), count):
        if all(right - left >= 3 for left, right in itertools.pairwise(starts)):
            yield starts


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

    def value(starts):
        return len(prefer.intersection(starts)), sum(windows[start] for start in starts)

    best = max(map(value, disjoint_choices(windows, count)), default=None)
    found = take_exactly(windows, 3, count, prefer)
    if best is None:
        assert found is None
    else:
        assert all(right - left >= 3 for left, right in itertools.pairwise(found))
        assert value(found) == best


@settings(deadline=None, max_examples=50)
@given(st.integers(9, 14), st.data())
def test_optimal_is_the_best_of_all_disjoint_choices(layers, data):
    grid = st.integers(0, 1000).map(lambda n: n / 1024)  # sums are exact
    triplets = data.draw(st.lists(grid, min_size=layers - 2, max_size=layers - 2))
    single = data.draw(st.lists(grid, min_size=layers, max_size=layers))
    reading = data.draw(st.sampled_from(READINGS))
    scores = table(single, triplets=triplets)
    windows = {s: v for s, v in enumerate(scores.read(3, reading)) if v is not None}
    ratio = data.draw(st.sampled_from((12, 23, 30)))
    count = layers * ratio // 100
    made = plan("interlace_optimal", ratio, scores, reading=reading)
    total = sum(t["score"] for t in made.triplets)
    assert total == max(sum(windows[s] for s in c) for c in disjoint_choices(windows, count))
    if reading == "paper":
        greedy = plan("interlace", ratio, scores)
        assert total >= sum(t["score"] for t in greedy.triplets)
        roles = {t["start"]: (t["drop"], t["tune"]) for t in greedy.triplets}
        for entry in made.triplets:
            same = (entry["drop"], entry["tune"])
            assert roles.get(entry["start"], same) == same


def test_where_no_disjoint_triplets_exist_the_reading_or_the_protection_is_named():
    even = table([0.5] * 12, triplets=[0.5] * 10)
    with pytest.raises(InputError, match=r"experiments\.ratios: 12 layers have no 4 disjoint"):
        plan("interlace_optimal", 33.4, even, reading="released")
    with pytest.raises(InputError, match=r"plan\.protect: \[2, 5, 8\] leaves no 2 disjoint"):
        plan("interlace", 17, even, protect=[2, 5, 8])
