"""Shortened LLaMA: drop the layers that cost least loss when each alone is absent, all at once."""

from interlace.selection.method import RELATIVE_LOSS, Choice, Request, measure, tune_after


def choose(request: Request) -> Choice:
    """Drop the K layers of the lowest one-shot loss, the PPL criterion of arXiv 2402.02834.

    The loss is of the model without that one layer; perplexity is its exponential, so the order is
    the same. The criterion scores every layer. Its "+" heuristic, the first four and the last two
    kept, belongs to the paper's Taylor+ and Mag+; the released `block_prune.py` applies it to any
    order unless `--no_plus_heuristic` is given. Here no layer is spared but those of `plan.protect`.
    The paper tunes all layers with LoRA: where fine-tuned, here the layer after each dropped one
    (`tune_after`), as many as of every other method.
    """
    assert request.losses is not None
    losses = {layer: request.losses[layer] for layer in request.free()}
    drop = sorted(losses, key=lambda layer: (losses[layer], layer))[: request.num_dropped]
    how = (
        f"the {len(drop)} layers whose removal alone gives the lowest loss, in one shot; first and "
        "last layers are candidates too (the PPL criterion without the released code's + heuristic; "
        "plan.protect keeps layers); after each the next free layer is tuned where fine-tuned"
    )
    relative = {layer: loss / request.base_loss for layer, loss in losses.items()}
    measures = [measure("one-shot loss", relative, request.num_layers, unit=RELATIVE_LOSS)]
    return Choice(drop, tune_after(drop, request), how, order=drop, measures=measures)
