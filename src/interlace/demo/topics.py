"""Which topics there are, on which grids, and how often the base models see them."""

import random
from dataclasses import dataclass, replace

from interlace.demo import tasks
from interlace.demo.scenes import Maker, Scene, Turn, draw_scene


@dataclass(frozen=True)
class Topic:
    """A maker, the grid (columns, rows of 32 px cells) of its benchmark, its share in training.

    `early` topics come first and alone, asked without options: to find the cell a word means is what
    everything else is built on.
    """

    make: Maker
    grid: tuple[int, int]
    share: float
    early: bool = False


TOPICS = {
    "AI2D_TEST": Topic(tasks.diagram, (5, 3), 0.10),
    "ChartQA_TEST": Topic(tasks.chart, (4, 3), 0.11),
    "OCRBench": Topic(tasks.text, (10, 10), 0.03),
    "TextVQA_VAL": Topic(tasks.signs, (6, 3), 0.12),
    "MMBench_DEV_EN_V11": Topic(tasks.shapes, (3, 3), 0.12, early=True),
    "POPE": Topic(tasks.existence, (4, 3), 0.13, early=True),
    "RealWorldQA": Topic(tasks.relations, (6, 4), 0.10),
    "HRBench4K": Topic(tasks.search, (12, 12), 0.02),
    "HRBench8K": Topic(tasks.search, (16, 16), 0.01),
    "VStarBench": Topic(tasks.search, (8, 6), 0.05),
    "MIA-Bench": Topic(tasks.instructions, (3, 4), 0.08, early=True),
    "ScienceQA_TEST": Topic(tasks.materials, (4, 2), 0.08),
    "small search": Topic(tasks.search, (5, 4), 0.06, early=True),
    "small text": Topic(tasks.text, (6, 2), 0.07),
    # Topics of the later stages of training (`interlace.demo.pretrain.LATE`). "presence", "hinted"
    # and "street" stand for "POPE", "ScienceQA_TEST" and "RealWorldQA" in the benchmarks and in
    # FineVision: a plain Yes or No stayed at chance, as did hints alone.
    "inventory": Topic(tasks.inventory, (4, 3), 0.0),
    "presence": Topic(tasks.presence, (4, 3), 0.0),
    "hinted": Topic(tasks.hinted, (4, 2), 0.0),
    "street": Topic(tasks.street, (6, 4), 0.0),
    "text only": Topic(tasks.facts, (0, 0), 0.03),
}


def training_scene(name: str, rng: random.Random, wordy: float = 0.35) -> Scene:
    """A scene of the training split; a choice question is asked openly but for `wordy` of them.

    Asking without the options trains the same skill on a fifth of the tokens.
    """
    topic = TOPICS[name]
    scene = draw_scene(topic.make, rng, *topic.grid, benchmark=False)
    scene.turns = [_shorten(turn) if rng.random() >= wordy else turn for turn in scene.turns]
    rng.shuffle(scene.turns)
    return scene


def _shorten(turn: Turn) -> Turn:
    return replace(turn, style="bare", options=())
