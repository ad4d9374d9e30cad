"""The demo's pictures, questions, FineVision folder and benchmark tables."""

import ast
import base64
import io
import random
import subprocess
import sys
from collections import Counter

import numpy as np
import pandas as pd
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from interlace.demo.benchmarks import MAKERS, write_benchmarks
from interlace.demo.drawing import CELL, KINDS, Item, png_bytes, render
from interlace.demo.finevision import RATINGS, SCHEMA, SUBSETS, subset_rows, write_finevision
from interlace.demo.prompts import choice_prompt
from interlace.demo.questions import count_turns
from interlace.demo.scenes import NUMBER_WORDS, draw_scene
from interlace.demo.topics import TOPICS, training_scene
from interlace.errors import InputError

CHOICE = (
    "AI2D_TEST",
    "MMBench_DEV_EN_V11",
    "RealWorldQA",
    "HRBench4K",
    "HRBench8K",
    "VStarBench",
    "ScienceQA_TEST",
)


@pytest.fixture(scope="module")
def benchmarks(tmp_path_factory):
    root = tmp_path_factory.mktemp("benchmarks")
    write_benchmarks(root, rows=32, seed=5)
    return {name: pd.read_csv(root / f"{name}.tsv", sep="\t") for name in MAKERS}


@pytest.fixture(scope="module")
def finevision(tmp_path_factory):
    root = tmp_path_factory.mktemp("finevision") / "fv"
    write_finevision(root, rows=450, seed=5)
    return {
        folder.name: [
            row for path in sorted(folder.iterdir()) for row in pq.read_table(path).to_pylist()
        ]
        for folder in sorted(root.iterdir())
    }, root


def test_every_kind_draws_something_else():
    tiles = {kind: render(1, 1, {(0, 0): Item(kind, "black")}, random.Random(1)) for kind in KINDS}
    assert len({tile.tobytes() for tile in tiles.values()}) == len(KINDS)
    empty = render(1, 1, {}, random.Random(1))
    assert all((tile != empty).any(-1).sum() > 20 for tile in tiles.values())


def test_items_stay_in_their_cell():
    items = {(1, 1): Item("star", "red")}
    for seed in range(30):
        picture = render(3, 3, items, random.Random(seed)).astype(int)
        drawn = np.argwhere((picture != picture[0, 0]).any(-1))
        assert drawn.min() >= CELL
        assert drawn.max() < 2 * CELL


@settings(max_examples=60, deadline=None)
@given(st.sampled_from(sorted(TOPICS)), st.integers(0, 10**6))
def test_turns_are_answerable_and_scorable(name, seed):
    topic = TOPICS[name]
    scene = draw_scene(topic.make, random.Random(seed), *topic.grid, benchmark=topic.grid[0] > 0)
    for turn in scene.turns:
        assert turn.answer
        assert turn.answer == turn.answer.strip()
        if turn.options:
            assert turn.answer in turn.options
            assert len(set(turn.options)) == 4
            for option in turn.options:
                inside = [other for other in turn.options if option in other]
                assert inside == [option]
                assert len(option) > 1


def test_counts_are_those_of_the_scene():
    topic, asked = TOPICS["MMBench_DEV_EN_V11"], 0
    for seed in range(20):
        rng = random.Random(seed)
        scene = draw_scene(topic.make, rng, *topic.grid, benchmark=False)
        for turn in count_turns(rng, scene):
            word = turn.question.split()[2]  # "How many circles", "red shapes" or "shapes" at all
            things = [(item.colour, f"{item.kind}s", "shapes") for item in scene.items.values()]
            assert NUMBER_WORDS.index(turn.answer) == sum(word in names for names in things)
            asked += word == "shapes"
    assert asked


def test_splits_are_disjoint_whatever_the_seed():
    topic = TOPICS["ScienceQA_TEST"]
    shown = {True: set(), False: set()}
    for seed in range(4):
        rng = random.Random(seed)
        for split in shown:
            for _ in range(100):
                scene = draw_scene(topic.make, rng, *topic.grid, benchmark=split)
                shown[split].add(repr(sorted(scene.items.items())))
    assert len(shown[True]) > 100
    assert not shown[True] & shown[False]


def test_training_scenes_are_never_of_the_benchmark_split():
    rng = random.Random(0)
    for name in TOPICS:
        if name != "text only":
            assert not any(training_scene(name, rng).is_benchmark for _ in range(20))


def test_prompt_is_the_one_vlmevalkit_builds():
    text = choice_prompt("What?", ["red", "blue"], "A fact.")
    assert text == (
        "Hint: A fact.\nQuestion: What?\nOptions:\nA. red\nB. blue\n"
        "Please select the correct answer from the options above. \n"
    )


def test_finevision_has_the_schema_and_the_oddities(finevision):
    rows, root = finevision
    assert sum(len(part) for part in rows.values()) == 450
    assert len(rows) == len(SUBSETS) + 1 >= 13
    shards = sorted(root.glob("*/*.parquet"))
    assert all(pq.read_schema(path).equals(SCHEMA) for path in shards)
    groups = [pq.ParquetFile(path).metadata for path in shards]
    assert max(m.row_group(g).num_rows for m in groups for g in range(m.num_row_groups)) <= 100
    assert "geo+(demo)" in rows
    assert 0 < len(rows["tiny_search"]) <= 5
    assert all(row["images"] is None for row in rows["text_facts"])
    assert all(len(row["images"]) == 2 for row in rows["two_images"])
    assert max(len(row["texts"]) for row in rows["dialogs"]) > 5
    assert min(len(row["texts"]) for row in rows["dialogs"]) >= 3
    everything = [row for part in rows.values() for row in part]
    for rating in RATINGS:
        values = [row[f"{rating}_ratings"] for row in everything]
        assert None in values
        assert any(values)
        for row in everything:
            stars = row[f"{rating}_ratings"]
            assert row[f"{rating}_min"] == (min(stars) if stars else None)
            assert stars is None or len(stars) == len(row["texts"])


def test_albums_go_beyond_three_images():
    counts = Counter()
    from interlace.demo.finevision import conversations

    for made in conversations("albums", 40, 1):
        counts[len(made.images)] += 1
    assert counts[4]
    assert counts[5]
    assert counts[1]


def test_pictures_decode_to_whole_cells(finevision):
    for part in finevision[0].values():
        for row in part[:10]:
            for image in row["images"] or []:
                picture = Image.open(io.BytesIO(image["bytes"]))
                assert picture.mode == "RGB"
                assert not any(side % CELL for side in picture.size)


def test_same_seed_same_files_other_seed_other_files(tmp_path):
    for name, seed in (("a", 1), ("b", 1), ("c", 2)):
        write_finevision(tmp_path / name, 100, seed)
        write_benchmarks(tmp_path / f"{name}_tsv", 8, seed)
    for folder, pattern in (("", "*/*.parquet"), ("_tsv", "*.tsv")):
        bytes_of = {
            n: [p.read_bytes() for p in sorted((tmp_path / (n + folder)).glob(pattern))]
            for n in "abc"
        }
        assert bytes_of["a"] == bytes_of["b"] != bytes_of["c"]


def test_rows_sum_up_and_too_few_are_refused(tmp_path):
    assert sum(subset_rows(12000).values()) == 12000
    with pytest.raises(InputError, match=r"demo\.rows"):
        write_finevision(tmp_path / "x", 20, 0)
    with pytest.raises(InputError, match=r"demo\.benchmark_rows"):
        write_benchmarks(tmp_path / "y", 2, 0)
    assert not (tmp_path / "x").exists()


def test_benchmark_sizes_differ_and_hrbench_is_far_the_largest(benchmarks):
    area = {}
    for name, table in benchmarks.items():
        width, height = Image.open(io.BytesIO(base64.b64decode(table["image"][0]))).size
        area[name] = width * height
    assert (
        area["HRBench8K"]
        > area["HRBench4K"]
        > max(a for n, a in area.items() if not n.startswith("HR"))
    )
    assert area["OCRBench"] >= 102400
    assert len(set(area.values())) >= 9


def test_benchmark_pictures_are_in_no_training_data(benchmarks, finevision):
    trained = {
        image["bytes"]
        for part in finevision[0].values()
        for row in part
        for image in row["images"] or []
    }
    shown = [
        base64.b64decode(data)
        for table in benchmarks.values()
        for data in table["image"].astype(str)
        if len(data) > 64
    ]
    assert len(shown) > 200
    assert not trained & set(shown)


def test_choice_tables_are_balanced_and_true(benchmarks):
    for name in CHOICE:
        table = benchmarks[name]
        letters = Counter(table["answer"])
        assert set(letters) <= set("ABCD")
        assert max(letters.values()) <= len(table) / 4 + 3
        assert all(isinstance(row[row["answer"]], str) for _, row in table.iterrows())
    assert benchmarks["RealWorldQA"]["D"].isna().any()
    assert benchmarks["ScienceQA_TEST"]["hint"].notna().all()


def test_mmbench_rotates_and_refers_to_its_picture(benchmarks):
    table = benchmarks["MMBench_DEV_EN_V11"].set_index("index")
    for index, row in table.iterrows():
        first = table.loc[index % 1_000_000]
        assert row[row["answer"]] == first[first["answer"]]
        assert len(str(first["image"])) > 64
        if index >= 1_000_000:
            assert str(row["image"]) == str(index % 1_000_000)
    assert all(
        sorted(table.loc[[i + k * 1_000_000 for k in range(4)], "answer"]) == list("ABCD")
        for i in range(len(table) // 4)
    )


def test_hrbench_cycles_hold_every_question_once(benchmarks):
    for name in ("HRBench4K", "HRBench8K"):
        table = benchmarks[name]
        assert Counter(table["cycle_category"]) == dict.fromkeys(range(4), len(table) // 4)
        assert set(table["category"]) == {"single", "cross"}


def test_open_tables_have_vlmevals_answers(benchmarks):
    pope = Counter(benchmarks["POPE"]["answer"])
    assert pope["Yes"] == pope["No"] == len(benchmarks["POPE"]) // 2
    assert all(len(ast.literal_eval(a)) == 10 for a in benchmarks["TextVQA_VAL"]["answer"])
    assert all(len(ast.literal_eval(a)) == 1 for a in benchmarks["OCRBench"]["answer"])
    assert set(benchmarks["ChartQA_TEST"]["split"]) == {"test_human", "test_augmented"}
    mia = benchmarks["MIA-Bench"]
    for _, row in mia.iterrows():
        parts = [
            ast.literal_eval(row[c]) for c in ("components", "component_weight", "component_type")
        ]
        assert {len(p) for p in parts} == {row["num_of_component"]}
        assert sum(parts[1]) == 10


def test_data_and_grader_load_without_torch():
    code = (
        "import sys, interlace.demo.finevision, interlace.demo.benchmarks, interlace.demo.grader,"
        "interlace.demo.models; sys.exit('torch' in sys.modules or 'transformers' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_png_round_trip():
    picture = render(2, 1, {(0, 0): Item("a", "blue")}, random.Random(0))
    assert (np.asarray(Image.open(io.BytesIO(png_bytes(picture)))) == picture).all()
