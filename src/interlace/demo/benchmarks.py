"""Stand-ins for the twelve benchmarks: VLMEvalKit's columns, the demo's pictures and questions.

Pictures come from the benchmark split (`Scene.is_benchmark`), which no training data ever shows.
"""

import base64
import random
from collections.abc import Callable, Iterator
from pathlib import Path

import pandas as pd

from interlace.demo.drawing import png_bytes, render
from interlace.demo.scenes import Scene, Turn, draw_scene
from interlace.demo.tasks import WORDS
from interlace.demo.topics import TOPICS
from interlace.errors import InputError
from interlace.io import atomic_path

LETTERS = "ABCD"
Row = dict[str, object]

CATEGORIES = {
    "color": "attribute recognition",
    "shape": "attribute recognition",
    "count": "object counting",
    "compare": "attribute comparison",
    "neighbor": "spatial relationship",
    "side": "spatial relationship",
    "fact": "natural science",
}
OCR_CATEGORIES = {
    "word": (
        "Regular Text Recognition",
        "Irregular Text Recognition",
        "Artistic Text Recognition",
        "Handwriting Recognition",
        "Key Information Extraction",
    ),
    "digits": ("Digit String Recognition", "Handwritten Mathematical Expression Recognition"),
    "letters": ("Non-Semantic Text Recognition",),
    "ink": ("Scene Text-centric VQA",),
    "count": ("Doc-oriented VQA",),
}
SKILLS = {  # what a benchmark asks, in turns, so that the mix does not hang on chance
    "AI2D_TEST": ("points", "color", "arrows", "pointed", "shape", "color"),
    "ChartQA_TEST": ("value", "label", "extreme", "larger", "sum", "bars", "label", "extreme"),
    "OCRBench": ("read", "read", "read", "ink", "letters"),
    "TextVQA_VAL": ("ink_mark", "read_mark", "ink_mark", "read_color"),
    "MMBench_DEV_EN_V11": ("color", "shape", "count", "compare"),
    "POPE": ("exist",),
    "RealWorldQA": ("neighbor", "color", "neighbor", "side"),
    "HRBench4K": ("color", "neighbor", "shape", "neighbor"),
    "HRBench8K": ("color", "neighbor", "shape", "neighbor"),
    "VStarBench": ("color", "side", "shape", "neighbor"),
    "MIA-Bench": ("instruct", "instruct", "instruct", "list"),
    "ScienceQA_TEST": ("fact", "color", "fact", "shape"),
}


TOPIC_OF = {
    "POPE": "presence",
    "ScienceQA_TEST": "hinted",
    "RealWorldQA": "street",
}  # the others: their own name


def _draw(
    name: str, rng: random.Random, seen: set[bytes], skill: str, answer: str | None = None
) -> tuple[bytes, Scene, Turn]:
    """A picture that is not in `seen` yet (as PNG bytes), its scene, and one turn of `skill`."""
    topic = TOPICS[TOPIC_OF.get(name, name)]
    while True:
        scene = draw_scene(topic.make, rng, *topic.grid, benchmark=True, skill=skill)
        turns = [t for t in scene.turns if answer is None or t.answer.endswith(answer)]
        if not turns:
            continue
        data = png_bytes(render(scene.width, scene.height, scene.items, rng))
        if data not in seen:
            seen.add(data)
            return data, scene, rng.choice(turns)


def _samples(
    name: str, count: int, seed: int, answers: tuple[str | None, ...] = (None,)
) -> Iterator[tuple[str, Scene, Turn]]:
    """`count` different samples, pictures in base64; `answers` are wanted in turn."""
    rng, seen = random.Random(f"{seed} benchmark {name}"), set()
    skills = SKILLS[name]
    for i in range(count):
        data, scene, turn = _draw(
            name, rng, seen, skills[i % len(skills)], answers[i % len(answers)]
        )
        yield base64.b64encode(data).decode(), scene, turn


def _place(turn: Turn, letter: int) -> list[str]:
    """The options with the answer at `letter`, the others in their order."""
    options = [option for option in turn.options if option != turn.answer]
    options.insert(letter, turn.answer)
    return options


def _choice_rows(
    name: str, rows: int, seed: int, *, category: bool = True, hint: bool = False
) -> list[Row]:
    table = []
    for i, (image, _, turn) in enumerate(_samples(name, rows, seed)):
        letter = (i + i // 4) % 4
        options = _place(turn, letter)
        row: Row = {"index": i, "image": image, "question": turn.question}
        if hint:
            row["hint"] = turn.hint
        row |= dict(zip(LETTERS, options, strict=True)) | {"answer": LETTERS[letter]}
        if category:
            row["category"] = CATEGORIES.get(turn.skill, turn.skill)
        table.append(row)
    return table


def _ai2d(rows: int, seed: int) -> list[Row]:
    return _choice_rows("AI2D_TEST", rows, seed)


def _vstar(rows: int, seed: int) -> list[Row]:
    return _choice_rows("VStarBench", rows, seed)


def _real_world(rows: int, seed: int) -> list[Row]:
    """Without categories; one row in eight has three options only, as some have there."""
    table = _choice_rows("RealWorldQA", rows, seed, category=False)
    for i, row in enumerate(table):
        if i % 8 == 0 and row["answer"] != "D":
            row["D"] = None
    return table


def _science(rows: int, seed: int) -> list[Row]:
    table = _choice_rows("ScienceQA_TEST", rows, seed, hint=True)
    return [row | {"split": "test"} for row in table]


def _mmbench(rows: int, seed: int) -> list[Row]:
    """Four rotations of every question; the picture stands in the first, the others name it."""
    table = []
    for i, (image, _, turn) in enumerate(_samples("MMBench_DEV_EN_V11", max(1, rows // 4), seed)):
        options = _place(turn, i % 4)
        for k in range(4):
            turned = options[k:] + options[:k]
            row: Row = {
                "index": i + k * 1_000_000,
                "image": image if k == 0 else str(i),
                "question": turn.question,
                "hint": None,
            }
            row |= dict(zip(LETTERS, turned, strict=True))
            row |= {
                "answer": LETTERS[turned.index(turn.answer)],
                "category": CATEGORIES[turn.skill],
                "l2-category": "fine-grained perception",
                "split": "dev",
            }
            table.append(row)
    return sorted(table, key=lambda row: row["index"])


def _hrbench(name: str) -> Callable[[int, int], list[Row]]:
    def make(rows: int, seed: int) -> list[Row]:
        """Four cycles of every question, the answer at each letter once."""
        table = []
        for i, (image, _, turn) in enumerate(_samples(name, max(1, rows // 4), seed)):
            for cycle in range(4):
                letter = (i + cycle) % 4
                row: Row = {"index": 4 * i + cycle, "image": image, "question": turn.question}
                row |= dict(zip(LETTERS, _place(turn, letter), strict=True))
                row |= {
                    "answer": LETTERS[letter],
                    "category": "single" if turn.skill in ("color", "shape") else "cross",
                    "cycle_category": cycle,
                }
                table.append(row)
        return table

    return make


def _pope(rows: int, seed: int) -> list[Row]:
    samples = _samples("POPE", rows, seed, ("Yes", "No"))
    kinds = ("random,popular,adversarial", "adversarial", "popular,adversarial")
    return [
        {
            "index": i,
            "image": image,
            "question": turn.question,
            "answer": turn.answer.split()[-1],
            "category": kinds[i // 2 % 3],
        }
        for i, (image, _, turn) in enumerate(samples)
    ]


def _chart(rows: int, seed: int) -> list[Row]:
    human = ("sum", "larger")
    return [
        {
            "index": i,
            "image": image,
            "question": turn.question,
            "answer": turn.answer,
            "split": "test_human" if turn.skill in human else "test_augmented",
        }
        for i, (image, _, turn) in enumerate(_samples("ChartQA_TEST", rows, seed))
    ]


def _text_vqa(rows: int, seed: int) -> list[Row]:
    return [
        {"index": i, "image": image, "question": turn.question, "answer": str([turn.answer] * 10)}
        for i, (image, _, turn) in enumerate(_samples("TextVQA_VAL", rows, seed))
    ]


def _ocr(rows: int, seed: int) -> list[Row]:
    table = []
    for i, (image, _, turn) in enumerate(_samples("OCRBench", rows, seed)):
        if turn.skill == "read":
            digits, known = turn.answer.isdigit(), turn.answer in WORDS
            kind = "digits" if digits else "word" if known else "letters"
        else:
            kind = "ink" if turn.skill == "ink" else "count"
        categories = OCR_CATEGORIES[kind]
        table.append(
            {
                "index": i,
                "image": image,
                "question": turn.question,
                "answer": str([turn.answer]),
                "category": categories[i % len(categories)],
            }
        )
    return table


def _mia(rows: int, seed: int) -> list[Row]:
    table = []
    for i, (image, _, turn) in enumerate(_samples("MIA-Bench", rows, seed)):
        checks = list(turn.checks)
        weights = {2: [6, 4], 3: [4, 3, 3]}[len(checks)]
        types = ["describe", "format", "length"][: len(checks)]
        table.append(
            {
                "index": i,
                "image": image,
                "question": turn.question,
                "answer": turn.answer,
                "num_of_component": len(checks),
                "components": str(checks),
                "component_weight": str(weights),
                "component_type": str(types),
            }
        )
    return table


MAKERS: dict[str, Callable[[int, int], list[Row]]] = {
    "AI2D_TEST": _ai2d,
    "ChartQA_TEST": _chart,
    "OCRBench": _ocr,
    "TextVQA_VAL": _text_vqa,
    "MMBench_DEV_EN_V11": _mmbench,
    "POPE": _pope,
    "RealWorldQA": _real_world,
    "HRBench4K": _hrbench("HRBench4K"),
    "HRBench8K": _hrbench("HRBench8K"),
    "VStarBench": _vstar,
    "MIA-Bench": _mia,
    "ScienceQA_TEST": _science,
}


def write_benchmarks(root: Path, rows: int, seed: int) -> None:
    """Write the twelve `<dataset>.tsv` below `root`, each of about `rows` rows.

    MMBench and HRBench count their rotations as rows. Raises InputError for fewer than 8 rows.
    """
    if rows < 8:
        raise InputError(f"demo.benchmark_rows: {rows} is too few; ask for at least 8")
    for name, make in MAKERS.items():
        table = pd.DataFrame(make(rows, seed))
        with atomic_path(root / f"{name}.tsv") as partial:
            table.to_csv(partial, sep="\t", index=False)
