"""A stand-in for FineVision: its schema, its unevenness and its oddities, drawn by the demo."""

import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from interlace.demo import tasks
from interlace.demo.drawing import png_bytes, render
from interlace.demo.questions import attribute_turns, presence_turns
from interlace.demo.scenes import Maker, Scene, Turn, draw_scene, only
from interlace.demo.topics import training_scene
from interlace.errors import InputError
from interlace.io import atomic_path

RATINGS = ("relevance", "image_correspondence", "visual_dependency", "formatting")
SCHEMA = pa.schema(
    [
        ("images", pa.list_(pa.struct([("bytes", pa.binary()), ("path", pa.string())]))),
        ("texts", pa.list_(pa.struct([("user", pa.string()), ("assistant", pa.string())]))),
        ("source", pa.string()),
        *(
            column
            for rating in RATINGS
            for column in (
                (f"{rating}_ratings", pa.list_(pa.int64())),
                (f"{rating}_min", pa.int64()),
            )
        ),
    ]
)
ROW_GROUP = 100


@dataclass(frozen=True)
class Conversation:
    """One row: its pictures as PNG bytes (None: text only) and its turns."""

    images: list[bytes] | None
    turns: list[Turn]


RowMaker = Callable[[random.Random], Conversation]


def _picture(scene: Scene, rng: random.Random) -> bytes:
    return png_bytes(render(scene.width, scene.height, scene.items, rng))


def _from(*names: str, turns: int = 1) -> RowMaker:
    """Rows of some topics, with at most `turns` turns each."""

    def make(rng: random.Random) -> Conversation:
        scene = training_scene(rng.choice(names), rng, wordy=0.6)
        return Conversation([_picture(scene, rng)], scene.turns[: rng.randint(1, turns)])

    return make


def _text_only(rng: random.Random) -> Conversation:
    return Conversation(None, training_scene("text only", rng).turns[: rng.randint(1, 2)])


def _several(make: Maker, rng: random.Random, count: int) -> list[Scene]:
    return [
        draw_scene(make, rng, *rng.choice([(3, 3), (4, 3)]), benchmark=False) for _ in range(count)
    ]


def _pair(rng: random.Random) -> Conversation:
    """Two pictures and a question about one of them."""
    while True:
        scenes = _several(tasks.shapes, rng, 2)
        which = rng.randrange(2)
        items = scenes[which].items
        single = [item for item in items.values() if only(items, kind=item.kind)]
        if single:
            break
    item = rng.choice(single)
    place = ("first", "second")[which]
    turn = Turn("pair", f"What color is the {item.kind} in the {place} image?", item.colour)
    return Conversation([_picture(scene, rng) for scene in scenes], [turn])


def _album(rng: random.Random) -> Conversation:
    """One to five pictures, counted; those with more than three are left out by the paper."""
    scenes = _several(tasks.shapes, rng, rng.choice([1, 2, 2, 3, 3, 4, 5]))
    number = ("one", "two", "three", "four", "five")[len(scenes) - 1]
    turn = Turn("album", "How many images are there?", number)
    return Conversation([_picture(scene, rng) for scene in scenes], [turn])


def _dialog(rng: random.Random) -> Conversation:
    """Three to seven turns about one picture; those with more than five are left out."""
    wanted = rng.choice([3, 3, 3, 4, 4, 5, 6, 7])
    while True:
        scene = draw_scene(tasks.shapes, rng, 4, 3, benchmark=False)
        turns = [t for t in scene.turns if t.skill != "caption"]
        turns += presence_turns(rng, scene) + attribute_turns(rng, scene)
        unique = list({turn.question: turn for turn in turns}.values())
        if len(unique) >= wanted:
            rng.shuffle(unique)
            return Conversation([_picture(scene, rng)], unique[:wanted])


SUBSETS: dict[str, tuple[float, RowMaker]] = {
    "shapes_vqa": (0.18, _from("MMBench_DEV_EN_V11", turns=3)),
    "presence": (0.10, _from("presence", turns=3)),
    "geo+(demo)": (0.10, _from("street", turns=3)),
    "diagrams(arrows)": (0.09, _from("AI2D_TEST", turns=2)),
    "SynthBars": (0.11, _from("ChartQA_TEST", turns=3)),
    "ocr-words": (0.07, _from("small text", turns=2)),
    "street_signs": (0.09, _from("TextVQA_VAL", turns=2)),
    "wide_search": (0.05, _from("small search", "VStarBench", turns=2)),
    "hints(science)": (0.05, _from("hinted")),
    "instructions": (0.05, _from("MIA-Bench")),
    "dialogs": (0.04, _dialog),
    "two_images": (0.03, _pair),
    "albums": (0.01, _album),
    "text_facts": (0.03, _text_only),
}
TINY = ("tiny_search", 5, _from("HRBench4K"))  # a subset that 1 % would empty


def subset_rows(rows: int) -> dict[str, int]:
    """Rows of each subset; they sum to `rows` (at least 100)."""
    if rows < 100:
        raise InputError(f"demo.rows: {rows} is too few for 15 subsets; ask for at least 100")
    name, tiny, _ = TINY
    left = rows - tiny
    counts = {subset: max(2, int(share * left)) for subset, (share, _) in SUBSETS.items()}
    counts["shapes_vqa"] += left - sum(counts.values())
    return counts | {name: tiny}


def conversations(subset: str, rows: int, seed: int) -> Iterator[Conversation]:
    """The rows of one subset, from the training split."""
    make = TINY[2] if subset == TINY[0] else SUBSETS[subset][1]
    rng = random.Random(f"{seed} finevision {subset}")
    for _ in range(rows):
        yield make(rng)


def _record(subset: str, row: int, made: Conversation, rng: random.Random) -> dict[str, Any]:
    images = made.images and [
        {"bytes": data, "path": f"{subset}_{row}_{i}.png"} for i, data in enumerate(made.images)
    ]
    record: dict[str, Any] = {
        "images": images,
        "texts": [{"user": turn.prompt, "assistant": turn.answer} for turn in made.turns],
        "source": subset,
    }
    for rating in RATINGS:
        needs_image = rating in ("image_correspondence", "visual_dependency")
        stars = None
        if rng.random() > 0.05 and not (needs_image and images is None):
            stars = [rng.choice([3, 4, 4, 5, 5, 5]) for _ in made.turns]
        record[f"{rating}_ratings"] = stars
        record[f"{rating}_min"] = min(stars) if stars else None
    return record


def write_finevision(root: Path, rows: int, seed: int) -> None:
    """Write `rows` rows in 15 subsets below `root`, replacing what is there, all or nothing.

    `<root>/<subset>/train-0000k-of-0000n.parquet`, one to three shards a subset, row groups of at
    most 100 rows. Raises InputError for fewer than 100 rows.
    """
    counts = subset_rows(rows)
    with atomic_path(root, directory=True) as partial:
        for subset, count in counts.items():
            rng = random.Random(f"{seed} ratings {subset}")
            records = [
                _record(subset, row, made, rng)
                for row, made in enumerate(conversations(subset, count, seed))
            ]
            (partial / subset).mkdir()
            shards = 1 if count < 200 else 2 if count < 1000 else 3
            for shard in range(shards):
                part = records[count * shard // shards : count * (shard + 1) // shards]
                pq.write_table(
                    pa.Table.from_pylist(part, schema=SCHEMA),
                    partial / subset / f"train-{shard:05d}-of-{shards:05d}.parquet",
                    row_group_size=ROW_GROUP,
                )
