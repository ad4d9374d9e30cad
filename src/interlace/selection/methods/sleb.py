"""SLEB: drop what a greedy search over the language-modelling loss removed first."""

from interlace.errors import InputError
from interlace.selection.method import RELATIVE_LOSS, Choice, Request, measure, tune_after


def choose(request: Request) -> Choice:
    """Drop the first K removals of the search; tune as many layers.

    The paper says of SLEB-FT only that as many layers are tuned: here the layer after each removed
    one (`tune_after`).
    """
    assert request.removals is not None
    if len(request.removals) < request.num_dropped:
        raise InputError(
            f"sleb.json holds {len(request.removals)} removals, {request.num_dropped} are needed; "
            "run the search again"
        )
    drop = list(request.removals[: request.num_dropped])
    held = sorted(request.protect.intersection(drop))
    if held:
        raise InputError(
            f"plan.protect: SLEB's search removed the protected layer {held[0]}; run the search "
            "again with this plan.protect"
        )
    how = (
        f"the first {len(drop)} removals of the greedy loss search; after each the next free layer "
        "is tuned where fine-tuned (the paper does not say which)"
    )
    measures = []
    if request.losses is not None:
        losses = {layer: request.losses[layer] / request.base_loss for layer in drop}
        measures = [measure("loss once removed", losses, request.num_layers, unit=RELATIVE_LOSS)]
    return Choice(drop, tune_after(drop, request), how, order=drop, measures=measures)
