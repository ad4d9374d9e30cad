"""ShortGPT: drop the layers of the lowest Block Influence, all at once."""

from interlace.selection.method import Choice, Request, measure, tune_after
from interlace.selection.triplets import by_score


def choose(request: Request) -> Choice:
    """Drop the K layers with the lowest Block Influence, 1 - mean cosine (arXiv 2403.03853).

    Since 1 - cosine falls as the similarity of a layer rises, this drops what INTERLACE-TN drops in
    reading `paper`; the readings differ in the mean and the last layer as for every similarity.
    ShortGPT tunes nothing: where fine-tuned, the layer after each dropped one (`tune_after`).
    """
    similarity = request.windows(1)
    drop = by_score(similarity)[: request.num_dropped]
    how = (
        f"the {len(drop)} layers of the lowest Block Influence, in one shot; after each the next "
        "free layer is tuned where fine-tuned (ShortGPT itself tunes none)"
    )
    influence = {layer: 1 - score for layer, score in similarity.items()}
    unit = "Block Influence (1 − cosine)"
    measures = [measure("Block Influence", influence, request.num_layers, unit=unit)]
    return Choice(drop, tune_after(drop, request), how, order=drop, measures=measures)
