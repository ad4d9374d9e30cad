"""What the vision tower learns first: to say what stands in every cell and beside it."""

import random
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import Qwen2Tokenizer

from interlace.demo.drawing import KINDS, Item
from interlace.demo.scenes import COLOUR_NAMES, Scene

BEFORE = ((0, 0), (-1, 0), (0, -1))  # the cell itself, left of it, above it
AFTER = ((0, 0), (1, 0), (0, 1))  # the cell itself, right of it, below it


def wallpaper(rng: random.Random, width: int, height: int) -> Scene:
    """Anything anywhere."""
    while True:
        scene = Scene(width, height)
        for x in range(width):
            for y in range(height):
                if rng.random() < 0.65:
                    scene.items[x, y] = Item(rng.choice(KINDS), rng.choice(COLOUR_NAMES))
        if not scene.is_benchmark:
            return scene


def _cell_labels(scene: Scene, around: Sequence[tuple[int, int]]) -> list[list[int]]:
    """For every cell in reading order: kind and colour index (0: nothing) at each offset."""
    rows = []
    for y in range(scene.height):
        for x in range(scene.width):
            row = []
            for dx, dy in around:
                item = scene.items.get((x + dx, y + dy))
                row.append(1 + KINDS.index(item.kind) if item else 0)
                row.append(1 + COLOUR_NAMES.index(item.colour) if item else 0)
            rows.append(row)
    return rows


class VisionLessons(nn.Module):
    """Linear readers of the tower's outputs; gone after the first stage."""

    def __init__(self, hidden: int, tokenizer: Qwen2Tokenizer):
        super().__init__()
        sizes = (1 + len(KINDS), 1 + len(COLOUR_NAMES))
        self.around = (((0, 0),), ((0, 0),), BEFORE, AFTER)  # merger, then the DeepStack levels
        self.readers = nn.ModuleList(
            nn.ModuleList(nn.Linear(hidden, size) for _ in around for size in sizes)
            for around in self.around
        )

        def word(text: str) -> int:
            return tokenizer(text).input_ids[-1]

        nothing = word("<|vision_pad|>")
        self.words = (
            torch.tensor([nothing] + [word(k if len(k) == 1 else f" {k}") for k in KINDS]),
            torch.tensor([nothing] + [word(f" {c}") for c in COLOUR_NAMES]),
        )

    def loss(
        self, outputs: Sequence[Tensor], scenes: Sequence[Scene], embeddings: Tensor
    ) -> tuple[Tensor, float]:
        """Loss, and the share of filled cells whose kind and colour the merger's reader names.

        The merger's output also has to lie near the embedding of the words for what it shows, so
        that the decoder can match a question's word with a cell from the first layer on.
        """
        total = torch.zeros(())
        for level, (output, readers, around) in enumerate(
            zip(outputs, self.readers, self.around, strict=True)
        ):
            labels = torch.tensor([_cell_labels(scene, around) for scene in scenes]).flatten(0, 1)
            cells = output.flatten(0, 1)
            good = torch.ones(len(cells), dtype=torch.bool)
            for column, reader in enumerate(readers):
                logits = reader(cells)
                weight = 1.0 if level == 0 else 0.3
                total = total + weight * F.cross_entropy(logits, labels[:, column])
                if level == 0:
                    right = logits.argmax(-1) == labels[:, column]
                    good = right & good
            if level == 0:
                filled = labels[:, 0] > 0
                accuracy = good[filled].float().mean().item()
                unit = cells * torch.rsqrt(cells.pow(2).mean(-1, keepdim=True) + 1e-6)
                for column, words in enumerate(self.words):
                    logits = F.linear(unit, embeddings[words])
                    keep = torch.ones_like(filled)
                    if column == 0:  # bars and arrows have no word of one token of their own
                        keep = labels[:, 0] <= len(KINDS) - 10
                    total = total + F.cross_entropy(logits[keep], labels[keep, column])
        return total, accuracy
