"""Bootstrap intervals: their width, their pairing, and that they depend on nothing else."""

import math

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from interlace.evaluation import intervals
from interlace.evaluation.intervals import (
    RESAMPLES,
    bootstrap_interval,
    by_question,
    defined_share,
    holm,
    interval,
    permutation_p,
    resampled_scores,
    swapped_scores,
)


def make_outcomes(value, weight=1.0, question=None):
    names = [f"q{n}" for n in (range(len(value)) if question is None else question)]
    return pd.DataFrame({"question": names, "value": np.asarray(value, float), "weight": weight})


def p_of(a, b, seed=0):
    ours, theirs = swapped_scores(by_question(a), by_question(b), seed, "AI2D")
    return permutation_p(ours - theirs)


def width(ends):
    return ends[1] - ends[0]


outcome_lists = st.lists(
    st.tuples(st.integers(0, 9), st.floats(0, 1), st.floats(0.1, 2)), min_size=1, max_size=30
)


@given(outcome_lists, st.integers(0, 2**31), st.randoms(use_true_random=False))
def test_an_interval_lies_within_the_outcomes_and_knows_no_order(rows, seed, random):
    question, hit, weight = (np.array(column) for column in zip(*rows, strict=True))
    outcomes = make_outcomes(hit * weight, weight, question)
    low, high = bootstrap_interval(outcomes, seed, "AI2D")
    by_question = outcomes.groupby("question")[["value", "weight"]].sum()
    ratios = 100 * by_question["value"] / by_question["weight"]
    assert ratios.min() - 1e-9 <= low <= high <= ratios.max() + 1e-9
    order = list(range(len(rows)))
    random.shuffle(order)
    shuffled = outcomes.iloc[order].reset_index(drop=True)
    assert bootstrap_interval(shuffled, seed, "AI2D") == [low, high]


def test_seed_benchmark_and_questions_decide_what_is_drawn():
    rng = np.random.default_rng(0)
    value = rng.integers(2, size=50)
    outcomes = make_outcomes(value)
    first = resampled_scores(outcomes, 0, "AI2D")
    assert first.shape == (RESAMPLES,)
    assert np.array_equal(first, resampled_scores(outcomes, 0, "AI2D"))
    others = (
        resampled_scores(outcomes, 1, "AI2D"),
        resampled_scores(outcomes, 0, "POPE"),
        resampled_scores(make_outcomes(value, question=range(1, 51)), 0, "AI2D"),
    )
    for other in others:
        assert abs(np.corrcoef(first, other)[0, 1]) < 0.1
    # What was answered decides nothing: right and wrong swapped, the same questions are drawn.
    assert resampled_scores(make_outcomes(1 - value), 0, "AI2D") == pytest.approx(100 - first)


def test_blocks_of_draws_do_not_change_how_many_there_are(monkeypatch):
    outcomes = make_outcomes([0, 1] * 20)
    monkeypatch.setattr(intervals, "_DRAWS_AT_ONCE", 7 * 40 + 3)  # 7 resamples at once, 5 at last
    scores = resampled_scores(outcomes, 0, "AI2D")
    assert scores.shape == (RESAMPLES,)
    assert np.isfinite(scores).all()
    assert len(np.unique(scores)) > 10
    monkeypatch.setattr(intervals, "_DRAWS_AT_ONCE", 1)  # more questions than that
    assert np.isfinite(resampled_scores(outcomes, 0, "AI2D")).all()


@pytest.mark.parametrize("share", [0.1, 0.5, 0.8])
def test_an_interval_has_the_width_of_a_proportions(share):
    n = 1000
    value = np.arange(n) < share * n
    low, high = bootstrap_interval(make_outcomes(value), 1, "AI2D")
    half = 100 * 1.96 * math.sqrt(share * (1 - share) / n)
    assert low == pytest.approx(100 * share - half, abs=0.12 * half + 0.1)
    assert high == pytest.approx(100 * share + half, abs=0.12 * half + 0.1)


def test_an_interval_covers_the_truth_as_often_as_it_says():
    rng = np.random.default_rng(2)
    samples = [make_outcomes(rng.random(200) < 0.7) for _ in range(150)]
    found = [bootstrap_interval(sample, seed, "AI2D") for seed, sample in enumerate(samples)]
    covered = np.mean([low <= 70 <= high for low, high in found])
    assert 0.88 <= covered <= 0.99  # 0.95 +- three standard errors of 150 trials


def test_rows_of_one_question_stand_or_fall_together():
    """HR-Bench: four rotations of a question, all right or all wrong, are no more than one."""
    rng = np.random.default_rng(3)
    right = rng.integers(2, size=100)
    single = bootstrap_interval(make_outcomes(right), 0, "HRBench4K")
    rotated = make_outcomes(np.repeat(right, 4) / 100, 1 / 100, np.repeat(range(100), 4))
    assert bootstrap_interval(rotated, 0, "HRBench4K") == pytest.approx(single)
    alone = make_outcomes(np.repeat(right, 4))
    assert width(single) == pytest.approx(2 * width(bootstrap_interval(alone, 0, "x")), rel=0.15)


def test_all_right_is_exactly_all_right():
    weight = np.array([1 / 7, 1 / 3, 0.1] * 30)
    assert bootstrap_interval(make_outcomes(weight, weight), 0, "HRBench4K") == [100, 100]
    assert bootstrap_interval(make_outcomes(0 * weight, weight), 0, "HRBench4K") == [0, 0]


def test_a_variant_beside_itself_is_exactly_the_same():
    rng = np.random.default_rng(4)
    outcomes = make_outcomes(rng.random(300))
    a = resampled_scores(outcomes, 0, "TextVQA")
    b = resampled_scores(outcomes.sample(frac=1, random_state=1), 0, "TextVQA")
    assert interval(a / b) == [1, 1]
    assert interval(a - b) == [0, 0]
    assert p_of(outcomes, outcomes.sample(frac=1, random_state=1)) == 1


def test_a_paired_interval_is_much_narrower_where_variants_agree():
    rng = np.random.default_rng(5)
    dense = rng.random(1000) < 0.7
    pruned = np.where(rng.random(1000) < 0.05, ~dense, dense)  # one answer in twenty changes
    a, b = (resampled_scores(make_outcomes(x), 0, "AI2D") for x in (dense, pruned))
    paired = width(interval(b / a))
    elsewhere = resampled_scores(make_outcomes(pruned), 1, "AI2D")
    assert paired < 0.5 * width(interval(elsewhere / a))
    # of the difference: the variance of a mean of differences that are -1, 0 or 1
    changed = pruned.astype(float) - dense
    half = 100 * 1.96 * changed.std() / math.sqrt(1000)
    assert width(interval(b - a)) == pytest.approx(2 * half, rel=0.12)


def test_an_f1_that_is_undefined_in_some_resamples():
    """POPE with two positives among ten: one resample in ten draws neither, and drops out."""
    both = np.array([2.0, 0] + [0] * 8)
    outcomes = make_outcomes(both, np.array([2.0, 1] + [0] * 8))
    scores = resampled_scores(outcomes, 0, "POPE")
    assert np.isnan(scores).mean() == pytest.approx(0.8**10, abs=0.03)
    assert interval(scores) == interval(scores[np.isfinite(scores)]) == [0, 100]
    nothing = make_outcomes([0.0] * 5, 0.0)
    assert np.isnan(resampled_scores(nothing, 0, "POPE")).all()
    assert bootstrap_interval(nothing, 0, "POPE") == [0, 0]
    assert np.isnan(interval(np.array([np.nan, np.inf]))).all()


def test_all_benchmarks_questions_at_once_keep_within_bounds(monkeypatch):
    """27,000 questions: no table of draws is larger than the bound, which is far below n * 2000."""
    sizes = []
    make_rng = np.random.default_rng

    class Recorder:
        def __init__(self, seed):
            self.rng = make_rng(seed)

        def integers(self, high, size):
            sizes.append(size)
            return self.rng.integers(high, size=size)

    value = make_rng(0).random(27_000)
    with monkeypatch.context() as patch:
        patch.setattr(np.random, "default_rng", Recorder)
        scores = resampled_scores(make_outcomes(value), 0, "all")
    assert sum(rows for rows, _ in sizes) == RESAMPLES == len(scores)
    assert max(rows * columns for rows, columns in sizes) <= intervals._DRAWS_AT_ONCE
    assert scores.std() == pytest.approx(100 * value.std() / math.sqrt(27_000), rel=0.1)


def test_p_values_count_swaps_that_go_as_far_and_are_never_zero():
    assert permutation_p(np.array([5.0] + [1.0] * 99)) == 2 / 100
    assert permutation_p(np.array([-5.0, 5.0, -6.0] + [1.0] * 97)) == 4 / 100
    assert permutation_p(np.array([5.0] + [np.nan] * 9 + [1.0] * 90)) == 20 / 100, "undefined: far"
    assert permutation_p(np.array([0.0] * 10)) == 1
    assert permutation_p(np.array([5.0, 5.0 - 1e-12])) == 1, "the last bit is no difference"


@pytest.mark.parametrize("differing", [1, 3, 5, 6, 8])
def test_of_right_and_wrong_answers_it_is_the_sign_test(differing):
    """McNemar: of k answers that differ, all in one direction, p is 2 / 2^k, however many agree."""
    a = np.array([1] * differing + [1, 0] * 40)
    b = np.array([0] * differing + [1, 0] * 40)
    expected = 2 / 2**differing
    error = 4 * math.sqrt(expected / RESAMPLES) + 2 / RESAMPLES
    assert p_of(make_outcomes(a), make_outcomes(b)) == pytest.approx(expected, abs=error)


@pytest.mark.parametrize("num_questions", [6, 10, 30, 100])
@pytest.mark.parametrize("differing", [0.5, 0.08])
def test_few_questions_give_no_more_false_positives(num_questions, differing, monkeypatch):
    """Nominal 5 %; 10 % is five standard errors off. The bootstrap's tail gave 9.6 % with six."""
    monkeypatch.setattr(intervals, "RESAMPLES", 199)
    rng = np.random.default_rng([num_questions, int(100 * differing)])
    found = []
    for seed in range(300):
        base = rng.random(num_questions) < 0.5
        a, b = (
            pd.DataFrame({"value": base ^ (rng.random(num_questions) < differing), "weight": 1.0})
            for _ in range(2)
        )
        ours, theirs = swapped_scores(a, b, seed, "AI2D")
        found.append(permutation_p(ours - theirs))
    assert np.mean(np.array(found) <= 0.05) < 0.1
    if num_questions == 100 and differing == 0.5:
        assert np.mean(np.array(found) <= 0.05) > 0.005, "it can find something"
        assert 0.4 < np.mean(found) < 0.65


def test_a_real_difference_is_found():
    rng = np.random.default_rng(7)
    found = []
    for seed in range(40):
        a, b = rng.random(200) < 0.8, rng.random(200) < 0.6
        found.append(p_of(make_outcomes(a), make_outcomes(b), seed))
    assert np.mean(np.array(found) < 0.05) > 0.9


def test_swaps_keep_the_sum_of_both_and_rotations_together():
    a = make_outcomes([1, 1, 1, 1, 0, 0], question=[0, 0, 0, 0, 1, 1])
    b = make_outcomes([0, 0, 0, 0, 0, 0], question=[0, 0, 0, 0, 1, 1])
    ours, theirs = swapped_scores(by_question(a), by_question(b), 0, "HRBench4K")
    assert ours[0] == pytest.approx(400 / 6)
    assert theirs[0] == 0
    assert ours + theirs == pytest.approx(400 / 6)
    assert {round(value, 3) for value in ours} == {66.667, 0.0}
    assert 0.4 < np.mean(ours[1:] > 0) < 0.6
    # F1: the weights change sides with the values. Nothing said and nothing true is 0.
    ours, theirs = swapped_scores(
        by_question(make_outcomes([2.0, 0], [2.0, 1])), by_question(make_outcomes([0, 0], [0, 0])),
        0, "POPE",
    )  # fmt: skip
    assert ours[0] == pytest.approx(200 / 3)
    assert {round(value, 3) for value in ours} == {66.667, 100.0, 0.0}
    assert theirs[0] == 0


def test_the_share_that_is_defined():
    assert defined_share(np.array([1.0, np.nan, np.inf, 2.0])) == 0.5


def test_holm_steps_down_and_keeps_the_order():
    assert holm([0.01, 0.04, 0.03]) == pytest.approx([0.03, 0.06, 0.06])
    assert holm([0.5, 0.9]) == [1, 1]
    assert holm([]) == []


@given(st.lists(st.floats(0, 1), max_size=12))
def test_holm_lies_between_the_p_value_and_bonferronis(p_values):
    adjusted = holm(p_values)
    for p, q in zip(p_values, adjusted, strict=True):
        assert p <= q <= min(1.0, p * len(p_values)) + 1e-12
    assert [adjusted[i] for i in np.argsort(p_values, kind="stable")] == sorted(adjusted)
    assert min(adjusted, default=0) == min(1.0, min(p_values, default=0) * len(p_values))
