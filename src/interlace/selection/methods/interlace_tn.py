"""INTERLACE-TN: drop the most similar single layers, tune the layer after each."""

from interlace.errors import InputError
from interlace.selection.method import Choice, Request, measure, tune_after
from interlace.selection.triplets import by_score


def choose(request: Request) -> Choice:
    """Choose by the scores of single layers alone.

    `paper`: the layers with the highest scores are dropped, whatever their neighbours; the layer
    after each (`tune_after` says which, where that one is not free) is tuned. `released`: walks
    the layers by descending score, passes over a layer if it or its successor is assigned, else
    drops it and tunes the successor.
    """
    scores = request.windows(1)
    if request.reading == "paper":
        drop = by_score(scores)[: request.num_dropped]
        tune = tune_after(drop, request)
        how = "the layers of the highest score dropped; after each the next free layer tuned"
    else:
        drop, tune = [], []
        for layer in by_score(scores):
            successor = layer + 1
            blocked = {*drop, *tune, *request.protect}
            if len(drop) < request.num_dropped and blocked.isdisjoint((layer, successor)):
                drop.append(layer)
                tune.append(successor)
        how = "by descending score, passing over a layer if it or its successor is assigned"
    if len(tune) < request.num_dropped:
        raise InputError(
            f"plan.protect: {sorted(request.protect)} leaves {len(tune)} of {request.num_dropped} "
            "layers to drop and tune; protect fewer layers or lower experiments.ratios"
        )
    measures = [measure("layer", scores, request.num_layers)]
    return Choice(drop, tune, how, order=drop, measures=measures)
