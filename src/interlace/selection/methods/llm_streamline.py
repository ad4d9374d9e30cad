"""LLM-Streamline: one layer stands for a whole contiguous block."""

from interlace.errors import InputError
from interlace.selection.method import Choice, Request, measure


def block_size(num_dropped: int) -> int:
    """Return the layers of the block: those dropped and the one kept before them."""
    return num_dropped + 1


def choose(request: Request) -> Choice:
    """Take the K+1 layers with the highest similarity; keep and tune the first, drop the K after it.

    Layer replacement of arXiv 2403.19135: over all starts 0..L-K-1, the last layer in them, the
    mean over samples of each one's mean cosine before and after the block, in both readings (equal
    scores: the first start). The kept layer starts from its own weights and is the only one tuned,
    where other methods tune K; the paper trains it to imitate the block, here it is fine-tuned as
    every other method's layers are.
    """
    assert request.scores is not None
    count, size = request.num_dropped, block_size(request.num_dropped)
    values = request.scores.samples(size)
    windows = request.without_protected(values, size)
    if not windows:
        raise InputError(
            f"plan.protect: {sorted(request.protect)} leaves no block of {size} layers; "
            "protect fewer layers or lower experiments.ratios"
        )
    start = min(windows, key=lambda start: (-windows[start], start))
    how = (
        f"the block of {size} layers, {start}..{start + count}, of the highest similarity (mean over "
        f"samples) among {len(windows)}: its first layer kept and tuned, the {count} after it dropped"
    )
    measures = [measure(f"block of {size}", values, request.num_layers, size)]
    return Choice(list(range(start + 1, start + size)), [start], how, measures=measures)
