"""Random: the control that looks at nothing."""

import numpy as np

from interlace.data.seeds import derive_seed
from interlace.selection.method import Choice, Request


def choose(request: Request) -> Choice:
    """Drop K layers and tune K others, both uniformly, from two streams of the seed."""
    free = request.free()
    drop = _draw(free, request, "drop")
    tune = _draw([layer for layer in free if layer not in drop], request, "tune")
    how = f"uniform from seed {request.seed}, one stream for what is dropped, one for what is tuned"
    return Choice(drop, tune, how)


def _draw(layers: list[int], request: Request, stream: str) -> list[int]:
    generator = np.random.default_rng(derive_seed(request.seed, "random", stream))
    count = min(request.num_dropped, len(layers))
    return [int(layer) for layer in generator.choice(layers, size=count, replace=False)]
