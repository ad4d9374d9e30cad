"""Score tables and files of window scores made up for the tests of planning."""

import random

import numpy as np

from interlace.decoder.ratio import num_dropped
from interlace.scoring.store import Windows, longest_window, window_list, write_windows
from interlace.selection.plan import make_plan
from interlace.selection.registry import METHODS
from interlace.selection.scores import ScoreTable

READINGS = ("paper", "released")
RATIOS = (10, 15, 20, 25)
INFO = {
    "model_digest": "d",
    "text": "conversation",
    "counts_known": True,
    "convention": "",
    "settings": {},
    "provenance": {},
    "left_out": {},
}


def table(single, pairs=None, triplets=None, more=None):
    """A table whose token means and sample means are the same; what is not given is zero."""
    layers = len(single)
    means = {1: list(single), 2: list(pairs or [0.0] * (layers - 1))}
    means |= {3: list(triplets or [0.0] * (layers - 2))} | (more or {})
    about = {"text": "conversation", "modality": "all", "subsets": None, "num_samples": 4}
    return ScoreTable(layers, means, means, "digest", about)


def random_table(layers, seed, ties=False):
    """A table of random means, token and sample means apart; with `ties` many are equal."""
    rng = random.Random(seed)
    draw = (lambda: rng.choice((0.25, 0.5, 0.75))) if ties else rng.random
    sizes = range(1, longest_window(layers) + 1)
    token, sample = ({k: [draw() for _ in range(layers - k + 1)] for k in sizes} for _ in range(2))
    about = {"text": "conversation", "modality": "all", "subsets": None, "num_samples": 4}
    return ScoreTable(layers, token, sample, "digest", about)


def random_windows(layers, seed=0, samples=6, sizes=None):
    """Per-sample scores of all windows; every third sample has no image; subsets a and b."""
    rng = np.random.default_rng(seed)
    windows = window_list(layers, sizes or range(1, longest_window(layers) + 1))
    counts = rng.integers(1, 50, (samples, 2)).astype(float)
    counts[::3, 1] = 0
    # As in the file: float32.
    means = rng.random((samples, len(windows), 2))
    sums = (means * counts[:, None]).astype(np.float32).astype(float)
    ids = [f"s{i}" for i in range(samples)]
    info = INFO | {"num_layers": layers, "model": "m"}
    return Windows(ids, ["a", "b"] * (samples // 2), windows, sums, counts, None, info)


def save(path, windows):
    """Write windows.parquet; return its path."""
    write_windows(path, windows)
    return path


def plan(method, ratio, scores, **more):
    """The plan of any method: what the losses are is made up from the scores' first size."""
    layers = scores.num_layers
    losses = {i: 2 - (score or 0) for i, score in enumerate(scores.sample_means[1])}
    more = {"losses": losses, "base_loss": 2.0, "removals": searched(layers, more)} | more
    if not METHODS[method].needs_ratio:
        ratio = None
    return make_plan(method, ratio, scores, num_layers=layers, **more)


def searched(layers, more):
    """What a search might have removed: layers from the middle outwards, none that is protected."""
    order = sorted(range(1, layers - 1), key=lambda i: (abs(i - layers // 2), i))
    return [i for i in order if i not in more.get("protect", ())]


def expected_count(method, ratio, layers):
    """How many layers the method has to drop."""
    return num_dropped(ratio, layers) if METHODS[method].needs_ratio else 0
