"""What can be asked about a scene: lists of turns, by skill."""

import random

from interlace.demo.drawing import SHAPES, Item
from interlace.demo.scenes import COLOUR_NAMES, NUMBER_WORDS, Scene, Turn, choices, name_of, only

MATERIALS = ("wood", "iron", "glass", "gold", "paper", "stone", "silk", "clay")
DIRECTIONS = {"right of": (1, 0), "left of": (-1, 0), "below": (0, 1), "above": (0, -1)}
SIDES = ("left", "right", "above", "below")


def pick(rng: random.Random, turns: list[Turn], limit: int) -> list[Turn]:
    """At most `limit` of the turns, in random order."""
    return rng.sample(turns, min(limit, len(turns)))


def attribute_turns(rng: random.Random, scene: Scene) -> list[Turn]:
    """Color of the only circle, shape of the only red one."""
    turns = []
    for item in scene.items.values():
        if only(scene.items, kind=item.kind):
            turns.append(
                Turn("color", f"What color is the {item.kind}?", item.colour,
                     choices(rng, item.colour, COLOUR_NAMES), style="choice")
            )  # fmt: skip
        if only(scene.items, colour=item.colour):
            turns.append(
                Turn("shape", f"What shape is {item.colour}?", item.kind,
                     choices(rng, item.kind, SHAPES), style="choice")
            )  # fmt: skip
    return turns


def neighbour_turns(rng: random.Random, scene: Scene) -> list[Turn]:
    """Two hops: the color (shape) of what stands directly beside the named item."""
    turns = []
    for (x, y), item in scene.items.items():
        name = name_of(scene.items, item)
        if name is None:
            continue
        for words, (dx, dy) in DIRECTIONS.items():
            other = scene.items.get((x + dx, y + dy))
            if other is None:
                continue
            if rng.random() < 0.5:
                question, answer, pool = "What color is the shape", other.colour, COLOUR_NAMES
            else:
                question, answer, pool = "What shape is", other.kind, SHAPES
            turns.append(
                Turn("neighbor", f"{question} {words} the {name}?", answer,
                     choices(rng, answer, pool), style="choice")
            )  # fmt: skip
    return turns


def side_turns(rng: random.Random, scene: Scene) -> list[Turn]:
    """Where one item lies as seen from another in the same row or column."""
    turns = []
    for (x, y), item in scene.items.items():
        for (u, v), other in scene.items.items():
            if (x == u) == (y == v):
                continue
            name, other_name = name_of(scene.items, item), name_of(scene.items, other)
            if name is None or other_name is None:
                continue
            answer = ("left" if x < u else "right") if y == v else ("above" if y < v else "below")
            turns.append(
                Turn("side", f"Where is the {name} relative to the {other_name}?", answer,
                     choices(rng, answer, SIDES), style="choice")
            )  # fmt: skip
    return turns


def count_turns(rng: random.Random, scene: Scene) -> list[Turn]:
    """How many of a shape, of a color, in all (at most seven)."""
    values = list(scene.items.values())
    shape, colour = rng.choice(SHAPES), rng.choice(COLOUR_NAMES)
    if rng.random() < 0.7:
        shape, colour = rng.choice(values).kind, rng.choice(values).colour
    asked = [
        (f"How many {shape}s are there?", sum(i.kind == shape for i in values)),
        (f"How many {colour} shapes are there?", sum(i.colour == colour for i in values)),
        ("How many shapes are there?", len(values)),
    ]
    return [
        Turn("count", question, NUMBER_WORDS[count],
             choices(rng, NUMBER_WORDS[count], NUMBER_WORDS[:6] if count < 6 else NUMBER_WORDS),
             style="choice")
        for question, count in asked
        if count < len(NUMBER_WORDS)
    ]  # fmt: skip


def compare_turns(rng: random.Random, scene: Scene) -> list[Turn]:
    """Which of two shapes there are more of."""
    counts = {s: sum(i.kind == s for i in scene.items.values()) for s in SHAPES}
    present = [s for s in SHAPES if counts[s]]
    if len(present) < 2:
        return []
    first, second = rng.sample(present, 2)
    if counts[first] == counts[second]:
        return []
    answer = first if counts[first] > counts[second] else second
    rest = [s for s in SHAPES if s not in (first, second)]
    options = [first, second, *rng.sample(rest, 2)]
    rng.shuffle(options)
    question = f"Are there more {first}s or more {second}s?"
    return [Turn("compare", question, answer, tuple(options), style="choice")]


def exist_turns(rng: random.Random, scene: Scene) -> list[Turn]:
    """As many Yes as No; a shape, a color, or both together (then near misses come first)."""
    values = set(scene.items.values())
    kinds, colours = {i.kind for i in values}, {i.colour for i in values}
    turns = []
    for _ in range(3):
        yes = rng.random() < 0.5
        sort = rng.choice(("kind", "colour", "both"))
        if sort == "kind":
            pool = [s for s in SHAPES if (s in kinds) == yes]
            words = pool and rng.choice(pool)
        elif sort == "colour":
            pool = [c for c in COLOUR_NAMES if (c in colours) == yes]
            words = pool and f"{rng.choice(pool)} shape"
        else:
            pool = [(c, s) for c in COLOUR_NAMES for s in SHAPES if (Item(s, c) in values) == yes]
            near = [(c, s) for c, s in pool if c in colours or s in kinds]
            words = pool and " ".join(rng.choice(near or pool))
        if words:
            answer = "Yes" if yes else "No"
            turns.append(Turn("exist", f"Is there a {words} in the image?", answer))
    return turns


def material_turns(rng: random.Random, scene: Scene) -> list[Turn]:
    """Facts stand in a hint: what each shape is made of; the picture links color and shape."""
    values = list(scene.items.values())
    kinds = sorted({i.kind for i in values})
    extra = [s for s in SHAPES if s not in kinds]
    told = kinds[:4] + rng.sample(extra, max(0, min(len(extra), 3 - len(kinds))))
    rng.shuffle(told)
    made = dict(zip(told, rng.sample(MATERIALS, len(told)), strict=True))
    hint = " ".join(f"A {shape} is {material}." for shape, material in made.items())
    turns = []
    for item in values:
        if item.kind not in made:
            continue
        material = made[item.kind]
        if only(scene.items, colour=item.colour):
            turns.append(
                Turn("fact", f"Which material is the {item.colour} shape?", material,
                     choices(rng, material, MATERIALS), hint, "choice")
            )  # fmt: skip
        if only(scene.items, kind=item.kind):
            turns.append(
                Turn("fact", f"What color is the {material} shape?", item.colour,
                     choices(rng, item.colour, COLOUR_NAMES), hint, "choice")
            )  # fmt: skip
    return turns


def instruct_turns(rng: random.Random, subject: str, word: str, what: str) -> list[Turn]:
    """One piece of content in a wanted form; `checks` say what a grader can verify."""
    names = f"names the {what} {word}"
    forms = [
        (f"Give {subject} in square brackets.", f"[{word}]", (names, "is in square brackets")),
        (f"Write {subject} twice.", f"{word} {word}", (names, "has exactly two words")),
        (f"Give {subject} and end with a period.", f"{word}.", (names, "ends with a period")),
        (f"Give {subject} after the word Answer and a colon.", f"Answer: {word}",
         (names, "starts with the word Answer", "has exactly two words")),
        (f"Write {subject} three times in square brackets.", f"[{word} {word} {word}]",
         (names, "is in square brackets", "has exactly three words")),
    ]  # fmt: skip
    return [Turn("instruct", q, a, checks=checks) for q, a, checks in forms]


def scene_instructions(rng: random.Random, scene: Scene) -> list[Turn]:
    """Instructions about the only circle, the only red shape, and the whole picture."""
    turns = []
    for item in scene.items.values():
        if only(scene.items, kind=item.kind):
            turns += instruct_turns(rng, f"the color of the {item.kind}", item.colour, "color")
        if only(scene.items, colour=item.colour):
            turns += instruct_turns(rng, f"the {item.colour} shape", item.kind, "shape")
    turns = pick(rng, turns, 3)
    if len(scene.items) <= 4:
        ordered = [scene.items[c] for c in sorted(scene.items, key=lambda c: (c[1], c[0]))]
        colours = [i.colour for i in ordered]
        turns.append(
            Turn("list", "List the color of every shape, separated by commas.", ", ".join(colours),
                 checks=(f"names the colors {' '.join(colours)} in this order",
                         "separates by commas"))
        )  # fmt: skip
    return turns


def caption_turn(scene: Scene) -> Turn:
    """Every item in reading order."""
    ordered = [scene.items[c] for c in sorted(scene.items, key=lambda c: (c[1], c[0]))]
    return Turn(
        "caption", "Describe the image.", ", ".join(f"{i.colour} {i.kind}" for i in ordered)
    )


def presence_turns(rng: random.Random, scene: Scene) -> list[Turn]:
    """As `exist_turns`, with what was found before the Yes or No: "blue. No" to a red circle."""
    values = list(scene.items.values())
    turns = []
    for _ in range(4):
        sort = rng.choice(("kind", "kind", "colour", "colour", "both"))
        yes = rng.random() < 0.5
        if sort == "colour":
            pool = [c for c in COLOUR_NAMES if sum(i.colour == c for i in values) == yes]
            if pool:
                colour = rng.choice(pool)
                found = next((i.kind for i in values if i.colour == colour), "none")
                asked, answer = f"{colour} shape", yes
        else:
            wanted = 1 if sort == "both" else int(yes)
            pool = [s for s in SHAPES if sum(i.kind == s for i in values) == wanted]
            if pool:
                kind = rng.choice(pool)
                found = next((i.colour for i in values if i.kind == kind), "none")
                asked, answer = kind, yes
                if sort == "both":
                    others = [c for c in COLOUR_NAMES if c != found]
                    asked = f"{found if yes else rng.choice(others)} {kind}"
        if pool:
            words = "Yes" if answer else "No"
            question = f"Is there a {asked} in the image?"
            turns.append(Turn("exist", question, f"{found}. {words}"))
    return turns
