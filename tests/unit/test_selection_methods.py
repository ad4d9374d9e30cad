"""The pruners of others under the same planning: what they drop, tune, and say of themselves."""

import random

import pytest

from interlace.errors import InputError
from interlace.selection.method import Choice, Method
from interlace.selection.plan import make_plan
from interlace.selection.registry import METHODS, PRUNERS
from tests.unit.score_tables import plan, random_table, table


def test_dense_tunes_the_last_quarter():
    made = make_plan("dense", None, num_layers=36)
    assert (made.drop, made.tune, made.ratio) == ([], list(range(27, 36)), None)


def test_sleb_drops_its_first_removals_and_tunes_as_many():
    made = make_plan("sleb", 25, num_layers=12, removals=[5, 6, 10, 2])
    assert (made.drop, made.tune, made.order) == ([5, 6, 10], [7, 8, 11], [5, 6, 10])
    assert made.measures == []
    losses = {5: 1.0, 6: 1.5, 10: 3.0, 2: 4.0}
    made = make_plan("sleb", 25, num_layers=12, removals=[5, 6, 10, 2], losses=losses, base_loss=2)
    values = made.measures[0]["values"]
    assert [values[layer] for layer in (5, 6, 10, 2)] == [0.5, 0.75, 1.5, None]
    with pytest.raises(InputError, match="holds 2 removals, 3 are needed"):
        make_plan("sleb", 25, num_layers=12, removals=[5, 6])
    with pytest.raises(InputError, match="protected layer 6"):
        make_plan("sleb", 25, num_layers=12, removals=[5, 6, 10], protect=[6])


@pytest.mark.parametrize("seed", range(5))
def test_shortgpt_drops_what_tn_of_the_paper_drops(seed):
    scores = random_table(36, seed)
    made, same = (plan(m, 25, scores) for m in ("shortgpt", "interlace_tn"))
    assert (made.drop, made.order, made.tune) == (same.drop, same.order, same.tune)
    influence = made.measures[0]["values"]
    assert influence == pytest.approx([1 - s for s in scores.token_means[1]])
    assert sorted(influence)[:9] == [influence[layer] for layer in made.order]


def test_llm_streamline_keeps_and_tunes_the_first_layer_of_the_most_similar_block():
    blocks = [0.1] * 9  # blocks of 4 layers from 0..8 of 12
    blocks[5] = 0.9
    made = plan("llm_streamline", 25, table([0.0] * 12, more={4: blocks}))
    assert (made.tune, made.drop, made.triplets) == ([5], [6, 7, 8], [])
    assert "5..8" in made.how_reached
    blocks[8] = 0.95  # the last block, with the last layer in it, is a candidate in both readings
    for reading in ("paper", "released"):
        made = plan("llm_streamline", 25, table([0.0] * 12, more={4: blocks}), reading=reading)
        assert (made.tune, made.drop) == ([8], [9, 10, 11])
    kept = plan("llm_streamline", 25, table([0.0] * 12, more={4: blocks}), protect=[10])
    assert kept.tune == [5]
    with pytest.raises(InputError, match=r"plan\.protect: \[3, 7\] leaves no block of 5 layers"):
        plan("llm_streamline", 34, table([0.0] * 12, more={5: [0.1] * 8}), protect=[3, 7])


def test_llm_streamline_goes_by_the_mean_over_samples():
    scores = random_table(36, 0)
    made = plan("llm_streamline", 25, scores)
    best = max(scores.sample_means[10])
    assert scores.sample_means[10].index(best) == made.tune[0]
    assert scores.token_means[10].index(max(scores.token_means[10])) != made.tune[0]


def test_shortened_llama_drops_the_lowest_losses_first_and_last_layer_too():
    losses = dict(enumerate([1.0, 9, 9, 9, 2.0, 9, 9, 9, 9, 9, 9, 1.5]))
    made = make_plan("shortened_llama", 25, num_layers=12, losses=losses, base_loss=1.0)
    assert made.order == [0, 11, 4]
    assert made.tune == [1, 5, 10]
    assert "first and last layers are candidates" in made.how_reached
    kept = make_plan("shortened_llama", 25, num_layers=12, losses=losses, protect=[0, 1, 2, 3, 11])
    assert kept.order == [4, 5, 6]
    with pytest.raises(InputError, match="losses of 11 layers for a model of 12"):
        make_plan("shortened_llama", 25, num_layers=12, losses=dict.fromkeys(range(11), 1.0))
    with pytest.raises(InputError, match=r"shortened_llama: needs block_losses\.json"):
        make_plan("shortened_llama", 25, num_layers=12)


def test_every_method_but_dense_is_a_pruner_and_has_a_label_of_its_own():
    assert set(METHODS) - set(PRUNERS) == {"dense"}
    assert len({method.label for method in METHODS.values()}) == len(METHODS)


def test_a_new_method_is_one_entry(monkeypatch):
    def choose(request):
        drop = request.free()[: request.num_dropped]
        return Choice(drop, request.free()[-request.num_dropped :], "from the front")

    monkeypatch.setitem(METHODS, "toy", Method(choose, "Toy"))
    assert make_plan("toy", 25, num_layers=12, protect=[0]).drop == [1, 2, 3]


def test_the_order_of_losses_in_a_mapping_does_not_matter():
    losses = {layer: float(layer % 5) for layer in range(12)}
    shuffled = dict(random.Random(0).sample(sorted(losses.items()), 12))
    plans = [
        make_plan("shortened_llama", 25, num_layers=12, losses=given)
        for given in (losses, shuffled)
    ]
    assert plans[0] == plans[1]
    assert plans[0].order == [0, 5, 10]
