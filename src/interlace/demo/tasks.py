"""The families of tasks: what is drawn and what is asked. One maker a topic."""

import random
from dataclasses import replace

from interlace.demo.drawing import ARROWS, SHAPES, Item
from interlace.demo.questions import (
    MATERIALS,
    attribute_turns,
    caption_turn,
    compare_turns,
    count_turns,
    exist_turns,
    instruct_turns,
    material_turns,
    neighbour_turns,
    pick,
    presence_turns,
    scene_instructions,
    side_turns,
)
from interlace.demo.scenes import (
    COLOUR_NAMES,
    NUMBER_WORDS,
    Scene,
    Turn,
    choices,
    only,
    scatter,
    text_items,
)

_THINGS = (
    "cat dog sun car bus hat cup map pen key box fan jam leg net "
    "owl pig rat sea toy van web zip ice bird fish tree door milk ring ship frog lamp moon rock wolf"
)
WORDS = tuple(_THINGS.split())


def shapes(rng: random.Random, width: int, height: int) -> Scene:
    """Attributes, counts, comparisons (MMBench)."""
    count = min(rng.randint(2, 6), width * height - 1)
    scene = Scene(width, height, scatter(rng, width, height, count, 0.3))
    scene.turns = (
        pick(rng, attribute_turns(rng, scene), 2)
        + pick(rng, count_turns(rng, scene), 1)
        + compare_turns(rng, scene)
    )
    if count <= 4 and rng.random() < 0.2:
        scene.turns.append(caption_turn(scene))
    return scene


def existence(rng: random.Random, width: int, height: int) -> Scene:
    """Is there one (POPE)."""
    scene = Scene(width, height, scatter(rng, width, height, rng.randint(1, 6), 0.3))
    scene.turns = exist_turns(rng, scene)
    return scene


def relations(rng: random.Random, width: int, height: int) -> Scene:
    """Neighbours and sides."""
    scene = Scene(width, height, scatter(rng, width, height, rng.randint(3, 7), 0.8))
    scene.turns = pick(rng, neighbour_turns(rng, scene), 3) + pick(rng, side_turns(rng, scene), 1)
    return scene


def street(rng: random.Random, width: int, height: int) -> Scene:
    """Relations and attributes (RealWorldQA)."""
    scene = relations(rng, width, height)
    scene.turns += pick(rng, attribute_turns(rng, scene), 2)
    return scene


def search(rng: random.Random, width: int, height: int) -> Scene:
    """A few small things in a wide picture (VStar, HRBench)."""
    scene = Scene(width, height, scatter(rng, width, height, rng.randint(3, 8), 0.5))
    scene.turns = (
        pick(rng, attribute_turns(rng, scene), 2)
        + pick(rng, neighbour_turns(rng, scene), 1)
        + pick(rng, side_turns(rng, scene), 1)
    )
    return scene


def materials(rng: random.Random, width: int, height: int) -> Scene:
    """Facts in a hint (ScienceQA)."""
    scene = Scene(width, height, scatter(rng, width, height, rng.randint(2, 4), 0.3))
    scene.turns = pick(rng, material_turns(rng, scene), 1)
    return scene


def instructions(rng: random.Random, width: int, height: int) -> Scene:
    """An answer in a wanted form (MIA-Bench)."""
    scene = Scene(width, height, scatter(rng, width, height, rng.randint(2, 5), 0.3))
    scene.turns = scene_instructions(rng, scene)
    return scene


def chart(rng: random.Random, width: int, height: int) -> Scene:
    """Bars of 1 to 6 with a letter below each (ChartQA)."""
    count = rng.randint(2, width)
    row = rng.randint(0, height - 2)
    left = rng.randint(0, width - count)
    colours = rng.sample(COLOUR_NAMES, count)
    values = [rng.randint(1, 6) for _ in range(count)]
    labels = rng.sample("abcdefgh", count)
    scene = Scene(width, height)
    for i in range(count):
        scene.items[left + i, row] = Item(f"bar{values[i]}", colours[i])
        scene.items[left + i, row + 1] = Item(labels[i], "black")

    def ask(skill: str, question: str, answer: object) -> Turn:
        return Turn(skill, question, str(answer), style="short")

    a, b = rng.sample(range(count), 2)
    turns = [ask("value", f"What is the value of the {colours[a]} bar?", values[a])]
    turns.append(ask("label", f"What is the value of {labels[b]}?", values[b]))
    turns.append(ask("bars", "How many bars are there?", count))
    for word, extreme in (("highest", max(values)), ("lowest", min(values))):
        if values.count(extreme) == 1:
            turns.append(ask("extreme", f"Which color is the {word} bar?",
                             colours[values.index(extreme)]))  # fmt: skip
    turns.append(ask("sum", f"What is the sum of the {colours[a]} and the {colours[b]} bar?",
                     values[a] + values[b]))  # fmt: skip
    if values[a] != values[b]:
        bigger = a if values[a] > values[b] else b
        turns.append(ask("larger", f"Which bar is higher, {colours[a]} or {colours[b]}?",
                         colours[bigger]))  # fmt: skip
    scene.turns = pick(rng, turns, 4)
    return scene


def _text(rng: random.Random, longest: int) -> str:
    kind = rng.random()
    if kind < 0.45:
        return rng.choice([w for w in WORDS if len(w) <= longest])
    length = rng.randint(2, min(4, longest))
    if kind < 0.8:
        return str(rng.randint(10 ** (length - 1), 10**length - 1))
    return "".join(rng.choice("abcdefghijklmnopqrstuvwxyz") for _ in range(min(length, 3)))


def text(rng: random.Random, width: int, height: int) -> Scene:
    """One text somewhere (OCRBench)."""
    word = _text(rng, width)
    colour = rng.choice(COLOUR_NAMES)
    column, row = rng.randint(0, width - len(word)), rng.randint(0, height - 1)
    scene = Scene(width, height, text_items(word, column, row, colour))
    scene.turns = [
        Turn("read", "What is written in the image?", word),
        Turn("ink", "What color is the text?", colour),
        Turn("letters", "How many characters are written?", NUMBER_WORDS[len(word)]),
    ]
    scene.turns += pick(rng, instruct_turns(rng, "the text", word, "text"), 1)
    return scene


def signs(rng: random.Random, width: int, height: int) -> Scene:
    """Two texts in their colors, a shape before each (TextVQA)."""
    rows = rng.sample(range(height), 2)
    colours, marks = rng.sample(COLOUR_NAMES, 2), rng.sample(SHAPES, 2)
    scene, turns = Scene(width, height), []
    for row, colour, mark in zip(rows, colours, marks, strict=True):
        word = _text(rng, width - 1)
        column = rng.randint(1, width - len(word))
        scene.items |= text_items(word, column, row, colour)
        mark_colour = rng.choice([c for c in COLOUR_NAMES if c not in colours])
        scene.items[column - 1, row] = Item(mark, mark_colour)
        turns += [
            Turn("read_color", f"What is written in {colour}?", word, style="short"),
            Turn("read_mark", f"What is written right of the {mark}?", word, style="short"),
            Turn("ink_mark", f"What color is the text right of the {mark}?", colour,
                 style="short"),
        ]  # fmt: skip
    scene.turns = pick(rng, turns, 3)
    return scene


def diagram(rng: random.Random, width: int, height: int) -> Scene:
    """Shapes joined by arrows (AI2D)."""
    scene = Scene(width, height)
    turns = []
    kinds = rng.sample(SHAPES, 6)
    colours = [rng.choice(COLOUR_NAMES) for _ in kinds]
    across = (width + 1) // 2
    nodes = [(2 * (i % across), 2 * (i // across)) for i in range(across * ((height + 1) // 2))]
    nodes = nodes[: len(kinds)]
    for cell, kind, colour in zip(nodes, kinds, colours, strict=False):
        scene.items[cell] = Item(kind, colour)
    links = [(a, b) for a in nodes for b in nodes if (b[0] - a[0], b[1] - a[1]) in ((2, 0), (0, 2))]
    rng.shuffle(links)
    for a, b in links[: rng.randint(2, len(links))]:
        forward = rng.random() < 0.5
        source, target = (a, b) if forward else (b, a)
        level = a[1] == b[1]
        arrow = ARROWS[int(forward)] if level else ARROWS[2 + int(forward)]
        scene.items[(a[0] + b[0]) // 2, (a[1] + b[1]) // 2] = Item(arrow, "black")
        start, end = scene.items[source], scene.items[target]
        turns.append(("points", source, f"Which shape does the {start.kind} point to?", end.kind))
        turns.append(("pointed", target, f"Which shape points to the {end.kind}?", start.kind))
    shown = {}
    for skill, cell, question, answer in turns:
        shown.setdefault((skill, cell), []).append((question, answer))
    asked = [
        Turn(skill, *pairs[0], choices(rng, pairs[0][1], SHAPES), style="choice")
        for (skill, _), pairs in shown.items()
        if len(pairs) == 1
    ]
    arrows = sum(item.kind in ARROWS for item in scene.items.values())
    asked.append(
        Turn("arrows", "How many arrows are there?", NUMBER_WORDS[arrows],
             choices(rng, NUMBER_WORDS[arrows], NUMBER_WORDS), style="choice")
    )  # fmt: skip
    scene.turns = pick(rng, asked, 3) + pick(rng, attribute_turns(rng, scene), 1)
    return scene


def inventory(rng: random.Random, width: int, height: int) -> Scene:
    """What belongs together, said in any order, and asked at once (for the base models only).

    After "circle" only the cell with the circle can say which word comes next. This teaches in one
    step the look-up that a question needs two steps for.
    """
    scene = Scene(width, height, scatter(rng, width, height, rng.randint(2, 4), 0.3))
    by_kind = [i for i in scene.items.values() if only(scene.items, kind=i.kind)]
    by_colour = [i for i in scene.items.values() if only(scene.items, colour=i.colour)]
    rng.shuffle(by_kind)
    rng.shuffle(by_colour)
    if by_kind:
        answer = ", ".join(f"{i.kind} {i.colour}" for i in by_kind)
        scene.turns.append(Turn("inventory", "Name the color of each shape.", answer))
    if by_colour:
        answer = ", ".join(f"{i.colour} {i.kind}" for i in by_colour)
        scene.turns.append(Turn("inventory", "Name the shape of each color.", answer))
    scene.turns += attribute_turns(rng, scene)
    return scene


def presence(rng: random.Random, width: int, height: int) -> Scene:
    """Is there one, and what is it (POPE)."""
    scene = Scene(width, height, scatter(rng, width, height, rng.randint(1, 6), 0.3))
    scene.turns = presence_turns(rng, scene)
    return scene


def hinted(rng: random.Random, width: int, height: int) -> Scene:
    """Questions below a hint, which some of them need and some do not (ScienceQA)."""
    scene = Scene(width, height, scatter(rng, width, height, rng.randint(2, 4), 0.3))
    need = material_turns(rng, scene)
    if need:
        free = [replace(turn, hint=need[0].hint) for turn in attribute_turns(rng, scene)]
        scene.turns = pick(rng, need, 1) + pick(rng, free, 1)
        rng.shuffle(scene.turns)
        scene.turns = scene.turns[:1]
    return scene


def facts(rng: random.Random, width: int, height: int) -> Scene:
    """Text only: statements and a question about them. The grid is 0 x 0."""
    assert width == height == 0
    kinds = rng.sample(SHAPES, rng.randint(2, 4))
    told = {kind: rng.choice(COLOUR_NAMES) for kind in kinds}
    made = dict(zip(kinds, rng.sample(MATERIALS, len(kinds)), strict=True))
    kind = rng.choice(kinds)
    colour_story = " ".join(f"The {k} is {c}." for k, c in told.items())
    made_story = " ".join(f"A {k} is {m}." for k, m in made.items())
    scene = Scene(0, 0)
    scene.turns = [
        Turn("told", f"{colour_story} What color is the {kind}?", told[kind]),
        Turn("told", f"{made_story} Which material is the {kind}?", made[kind]),
        Turn("told", f"{made_story} Which shape is {made[kind]}?", kind),
    ]
    rng.shuffle(scene.turns)
    return scene
