"""Scenes and questions: what the demo's training data, benchmarks and base models share.

A scene is a grid of cells with items in it, and a few questions about it, each with its answer.
Every scene belongs to one of two splits by the checksum of what it shows, whatever the seed, so no
benchmark picture can occur in any training data, however much of it is drawn.
"""

import random
import zlib
from collections.abc import Callable
from dataclasses import dataclass, field

from interlace.demo.drawing import COLOURS, SHAPES, Item, Items
from interlace.demo.prompts import choice_prompt, short_prompt

COLOUR_NAMES = tuple(COLOURS)
NUMBER_WORDS = ("zero", "one", "two", "three", "four", "five", "six", "seven")


@dataclass(frozen=True)
class Turn:
    """A question and its answer.

    `skill` is what it takes; `options` are the choices in the order shown (empty: open question);
    `style` is how the benchmark asks: "choice", "short" (a word or phrase) or "bare"; `checks` are
    the machine-checkable components of an instruction.
    """

    skill: str
    question: str
    answer: str
    options: tuple[str, ...] = ()
    hint: str | None = None
    style: str = "bare"
    checks: tuple[str, ...] = ()

    @property
    def prompt(self) -> str:
        """The user's text, without the picture."""
        if self.style == "choice":
            return choice_prompt(self.question, self.options, self.hint)
        hint = f"Hint: {self.hint}\n" if self.hint else ""
        return hint + (short_prompt(self.question) if self.style == "short" else self.question)


@dataclass
class Scene:
    """`width x height` cells; `items` by cell; `turns` that may be asked about it."""

    width: int
    height: int
    items: Items = field(default_factory=dict)
    turns: list[Turn] = field(default_factory=list)

    @property
    def is_benchmark(self) -> bool:
        """Which split the scene is in: one in eight is kept for benchmarks."""
        shown = (
            self.width,
            self.height,
            sorted((c, i.kind, i.colour) for c, i in self.items.items()),
        )
        return zlib.crc32(repr(shown).encode()) % 8 == 0


Maker = Callable[[random.Random, int, int], Scene]


def draw_scene(
    make: Maker, rng: random.Random, width: int, height: int, *, benchmark: bool, skill: str = ""
) -> Scene:
    """Draw scenes until one is in the wanted split and has turns (of `skill`, if given)."""
    while True:
        scene = make(rng, width, height)
        if scene.is_benchmark != benchmark:
            continue
        if skill:
            scene.turns = [turn for turn in scene.turns if turn.skill == skill]
        if scene.turns:
            return scene


def choices(
    rng: random.Random, answer: str, pool: tuple[str, ...] | list[str], count: int = 4
) -> tuple[str, ...]:
    """`count` different options in random order, `answer` among them."""
    others = rng.sample([word for word in pool if word != answer], count - 1)
    options = [*others, answer]
    rng.shuffle(options)
    return tuple(options)


def scatter(rng: random.Random, width: int, height: int, count: int, near: float) -> Items:
    """`count` shapes in different cells; each stands beside an earlier one with chance `near`."""
    free = {(x, y) for x in range(width) for y in range(height)}
    items: Items = {}
    few_shapes = rng.sample(SHAPES, 3) if rng.random() < 0.3 else SHAPES
    few_colours = rng.sample(COLOUR_NAMES, 3) if rng.random() < 0.3 else COLOUR_NAMES
    for _ in range(min(count, len(free))):
        beside = sorted(
            (x + dx, y + dy)
            for x, y in items
            for dx, dy in ((1, 0), (-1, 0), (0, 1), (0, -1))
            if (x + dx, y + dy) in free
        )
        cell = rng.choice(beside) if beside and rng.random() < near else rng.choice(sorted(free))
        free.discard(cell)
        items[cell] = Item(rng.choice(few_shapes), rng.choice(few_colours))
    return items


def only(items: Items, kind: str | None = None, colour: str | None = None) -> bool:
    """Whether exactly one item has this kind (and colour)."""
    found = [i for i in items.values() if kind in (None, i.kind) and colour in (None, i.colour)]
    return len(found) == 1


def name_of(items: Items, item: Item) -> str | None:
    """The shortest words that mean this item alone, or None if nothing does."""
    if only(items, kind=item.kind):
        return item.kind
    if only(items, colour=item.colour):
        return f"{item.colour} shape"
    if only(items, item.kind, item.colour):
        return f"{item.colour} {item.kind}"
    return None


def text_items(text: str, column: int, row: int, colour: str) -> Items:
    """`text` written from a cell to the right, a character a cell."""
    return {(column + i, row): Item(letter, colour) for i, letter in enumerate(text)}
