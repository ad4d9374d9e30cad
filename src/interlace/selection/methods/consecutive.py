"""Consecutive: drop one contiguous block of layers, tune the block after it."""

from interlace.errors import InputError
from interlace.selection.method import Choice, Request, measure


def choose(request: Request) -> Choice:
    """Drop K neighbouring layers and tune the next K.

    `paper`: the block with the highest sum of single-layer scores (equal sums: the first).
    `released`: the K layers from the single most similar layer on; the released code does not
    check the end of the model, here the block is moved back to fit, with a warning. Where fewer
    than K layers follow the block, the nearest ones before it are tuned too.
    """
    count, layers = request.num_dropped, request.num_layers
    scores = request.windows(1)
    measures = [measure("layer", scores, layers)]
    warnings = []
    if request.reading == "paper":
        totals = {
            start: sum(scores[layer] for layer in range(start, start + count))
            for start in range(layers - count + 1)
            if all(layer in scores for layer in range(start, start + count))
        }
        if not totals:
            raise InputError(
                f"plan.protect: {sorted(request.protect)} leaves no block of {count} layers; "
                "protect fewer layers or lower experiments.ratios"
            )
        start = min(totals, key=lambda start: (-totals[start], start))
        how = f"the block of {count} layers with the highest sum of scores"
        means = {start: total / count for start, total in totals.items()}
        measures.append(measure(f"mean over a block of {count}", means, layers, count))
    else:
        best = min(scores, key=lambda layer: (-scores[layer], layer))
        start = min(best, layers - count)
        how = f"{count} layers from the most similar layer, {best}, on"
        if start != best:
            warnings.append(
                f"the released rule names {count} layers from {best} on, past the last of "
                f"{layers}; the block was moved back to {start}"
            )
    drop = list(range(start, start + count))
    if not request.protect.isdisjoint(drop):
        raise InputError(
            f"plan.protect: the block {drop[0]}..{drop[-1]} of the released rule holds a protected "
            "layer; set plan.reading: paper or protect fewer layers"
        )
    free = request.free()
    after = [layer for layer in free if layer > drop[-1]]
    before = [layer for layer in reversed(free) if layer < start]
    tune = (after + before)[:count]
    if len(after) < count:
        how += (
            f"; only {len(after)} layers follow it, so {len(tune) - len(after)} before it are tuned"
        )
    return Choice(drop, tune, how, measures=measures, warnings=warnings)
