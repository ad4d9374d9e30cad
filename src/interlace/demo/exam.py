"""Held-out questions and how many a model answers to the letter."""

import random
from collections import defaultdict

from interlace.demo.drawing import render
from interlace.demo.forward import Batch, Encoder, Forward, Layout
from interlace.demo.scenes import draw_scene
from interlace.demo.topics import TOPICS


def held_out(
    encoder: Encoder, per_topic: int, seed: int = 77
) -> list[tuple[str, list[str], Batch]]:
    """Questions of the benchmark split in the benchmarks' own words: (topic, skills, batch)."""
    batches = []
    for name, topic in TOPICS.items():
        rng = random.Random(f"held out {seed} {name}")
        width, height = topic.grid
        size = max(2, min(20, 4000 // (width * height + 60)))
        scenes = [
            draw_scene(topic.make, rng, width, height, benchmark=bool(width))
            for _ in range(per_topic)
        ]
        for i in range(0, per_topic, size):
            part = scenes[i : i + size]
            turns = [rng.choice(scene.turns) for scene in part]
            pictures = [render(s.width, s.height, s.items, rng) for s in part] if width else []
            layout = Layout(1 if width else 0, width, height)
            batch = encoder.batch(layout, pictures, [[turn] for turn in turns], 400)
            batches.append((name, [turn.skill for turn in turns], batch))
    return batches


def accuracy(
    forward: Forward, batches: list[tuple[str, list[str], Batch]]
) -> tuple[dict[str, float], dict[str, float]]:
    """Percent of exact answers by topic and by skill."""
    by_topic, by_skill = defaultdict(list), defaultdict(list)
    for name, skills, batch in batches:
        for skill, right in zip(skills, forward.exact(batch), strict=True):
            by_topic[name].append(right)
            by_skill[skill].append(right)

    def percent(hits: dict[str, list[bool]]) -> dict[str, float]:
        return {key: round(100 * sum(v) / len(v), 1) for key, v in sorted(hits.items())}

    return percent(by_topic), percent(by_skill)
