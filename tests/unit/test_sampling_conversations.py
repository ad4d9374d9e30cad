"""Samples to the JSON of Qwen's fine-tuning code and back."""

import io
import json
import os
import re
import tempfile
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from interlace.data.chat import SampleDataset
from interlace.errors import InputError
from interlace.sampling.conversations import (
    JSON_NAME,
    export_conversations,
    import_conversations,
    main,
)
from interlace.sampling.domain import IMAGES, TEXTS
from interlace.sampling.settings import complete
from tests.tiny import make_tiny_samples
from tests.unit.sample_rows import draw_samples

SCHEMA = pa.schema([("images", IMAGES), ("texts", TEXTS), ("id", pa.string())])


def encoded(colour, format="PNG"):
    buffer = io.BytesIO()
    Image.new("RGB", (8, 6), colour).save(buffer, format)
    return buffer.getvalue()


def write_samples(root, rows, held_out=()):
    """Write samples `(id, [image bytes], [(user, assistant)])` of one subset, and the manifest."""
    folder = root / "a(b)+c"
    folder.mkdir(parents=True)
    body = [
        {
            "id": name,
            "images": [{"bytes": data, "path": None} for data in images] or None,
            "texts": [{"user": user, "assistant": answer} for user, answer in turns],
        }
        for name, images, turns in rows
    ]
    pq.write_table(pa.Table.from_pylist(body, schema=SCHEMA), folder / "train.parquet")
    entries = [{"id": name, "finetune": name not in held_out} for name, *_ in rows]
    pq.write_table(pa.Table.from_pylist(entries), root / "manifest.parquet")
    return root


def items(folder):
    return json.loads((folder / JSON_NAME).read_text(encoding="utf-8"))


def content(root):
    """Return id -> (bytes of the images, turns) of a folder of samples."""
    rows = [r for path in sorted(root.glob("*/*.parquet")) for r in pq.read_table(path).to_pylist()]
    return {
        row["id"]: ([image["bytes"] for image in row["images"] or []], row["texts"]) for row in rows
    }


def check_as_qwen_does(item, folder):
    """Raise where Qwen's loader would: `<image>` and `<video>` in what the human says."""
    images = item.get("image", [])
    images = [images] if isinstance(images, str) else images
    asked = [m["value"] for m in item["conversations"] if m["from"] == "human"]
    tags = [tag for value in asked for tag in re.findall("<image>|<video>", value)]
    assert tags == ["<image>"] * len(images)
    assert all((folder / image).is_file() for image in images)


def test_every_sample_comes_back_as_it_was(tmp_path):
    make_tiny_samples(tmp_path / "samples", rows=5)
    counts = export_conversations(tmp_path / "samples", tmp_path / "out")
    exported = items(tmp_path / "out")
    before = SampleDataset(tmp_path / "samples")
    assert counts["samples"] == len(exported) == len(before)
    assert counts["images"] == sum(len(record.images) for record in before) > 0
    for item in exported:
        check_as_qwen_does(item, tmp_path / "out")
    imported = import_conversations(tmp_path / "out" / JSON_NAME, tmp_path / "back")
    assert imported["kept"] == len(before)
    assert imported["left_out"] == {}
    assert imported["moved_images"] == 0
    assert content(tmp_path / "back") == content(tmp_path / "samples")
    after = SampleDataset(tmp_path / "back")
    assert dict(zip(after.ids, after.subsets, strict=True)) == dict(
        zip(before.ids, before.subsets, strict=True)
    )


def test_the_form_is_qwens(tmp_path):
    write_samples(
        tmp_path / "samples",
        [
            ("one", [encoded("red", "JPEG")], [("What?", "This."), ("And?", "That.")]),
            ("two", [encoded("red"), encoded("blue", "WEBP")], [("Which?", "Both.")]),
            ("none", [], [("Hi", "Hello")]),
        ],
    )
    export_conversations(tmp_path / "samples", tmp_path / "out")
    assert items(tmp_path / "out") == [
        {
            "id": "one",
            "subset": "a(b)+c",
            "image": "images/a(b)+c/0000000-0.jpg",
            "conversations": [
                {"from": "human", "value": "<image>\nWhat?"},
                {"from": "gpt", "value": "This."},
                {"from": "human", "value": "And?"},
                {"from": "gpt", "value": "That."},
            ],
        },
        {
            "id": "two",
            "subset": "a(b)+c",
            "image": ["images/a(b)+c/0000001-0.png", "images/a(b)+c/0000001-1.webp"],
            "conversations": [
                {"from": "human", "value": "<image>\n<image>\nWhich?"},
                {"from": "gpt", "value": "Both."},
            ],
        },
        {
            "id": "none",
            "subset": "a(b)+c",
            "conversations": [
                {"from": "human", "value": "Hi"},
                {"from": "gpt", "value": "Hello"},
            ],
        },
    ]
    data = (tmp_path / "out" / "images" / "a(b)+c" / "0000000-0.jpg").read_bytes()
    assert data == encoded("red", "JPEG")


_pieces = st.sampled_from(
    ["<image>", "<video>", "\u200b", "<\u200bimage>", "<", ">", "image", "\n"]
)
_texts = st.lists(_pieces | st.text(st.characters(codec="utf-8"), max_size=3), max_size=6).map(
    "".join
)


@settings(deadline=None, max_examples=15)
@given(st.lists(st.tuples(_texts, _texts, st.integers(0, 2)), min_size=1, max_size=10))
def test_any_text_survives(cases):
    rows = [
        (str(number), [encoded("red")] * images, [(user, answer), (user, answer)])
        for number, (user, answer, images) in enumerate(cases)
    ]
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        write_samples(root / "samples", rows)
        export_conversations(root / "samples", root / "out")
        for item in items(root / "out"):
            check_as_qwen_does(item, root / "out")
        import_conversations(root / "out" / JSON_NAME, root / "back")
        assert content(root / "back") == content(root / "samples")


def test_literal_tags_are_counted(tmp_path):
    write_samples(tmp_path / "samples", [("x", [], [("say <image><video>", "<image>")])])
    assert export_conversations(tmp_path / "samples", tmp_path / "out")["escaped"] == 2
    (item,) = items(tmp_path / "out")
    assert item["conversations"][1]["value"] == "<image>"


def test_what_is_held_out_for_calibration_is_not_exported_but_counted(tmp_path):
    rows = [(name, [encoded("red")], [("q", "a")]) for name in ("one", "two", "three")]
    write_samples(tmp_path / "samples", rows, held_out=["two"])
    counts = export_conversations(tmp_path / "samples", tmp_path / "out")
    assert counts == {"samples": 2, "images": 2, "escaped": 0, "held_out": 1}
    assert [item["id"] for item in items(tmp_path / "out")] == ["one", "three"]
    assert len(list((tmp_path / "out" / "images").rglob("*.png"))) == 2
    (tmp_path / "samples" / "manifest.parquet").unlink()
    with pytest.raises(InputError, match=r"manifest\.parquet: no such file"):
        export_conversations(tmp_path / "samples", tmp_path / "again")


def test_a_row_group_of_an_import_is_bounded_by_its_bytes(tmp_path, monkeypatch):
    monkeypatch.setattr("interlace.sampling.writer.GROUP_BYTES", 3 * len(encoded("red")))
    import_conversations(write_json(tmp_path, [item()] * 9), tmp_path / "out")
    metadata = pq.read_metadata(tmp_path / "out" / "set" / "train-00000-of-00001.parquet")
    sizes = [metadata.row_group(i).num_rows for i in range(metadata.num_row_groups)]
    assert sum(sizes) == 9
    assert max(sizes) <= 3


def write_json(tmp_path, body, name="set.json"):
    (tmp_path / "a.png").write_bytes(encoded("red"))
    (tmp_path / name).write_text(body if isinstance(body, str) else json.dumps(body))
    return tmp_path / name


def item(question="<image>\nWhat?", image="a.png", answer="This.", **keys):
    messages = [{"from": "human", "value": question}, {"from": "gpt", "value": answer}]
    return {"image": image, "conversations": messages} | keys


def with_junk(place):
    found = item()
    found["conversations"].insert(place, "JUNK")
    return found


def test_packed_items_lines_and_images_elsewhere_are_taken_in(tmp_path):
    body = [
        [item(), item("What?\n<image>", id="own", subset="other")],
        item("Left <image> right <image>?", ["a.png", "a.png"]),
    ]
    path = write_json(tmp_path, body)
    counts = import_conversations(path, tmp_path / "out")
    assert (counts["items"], counts["kept"], counts["moved_images"]) == (3, 3, 1)
    images = [encoded("red")]
    turn = {"user": "What?", "assistant": "This."}
    assert content(tmp_path / "out") == {
        "0": (images, [turn]),
        "own": (images, [turn]),
        "2": (images * 2, [{"user": "Left  right ?", "assistant": "This."}]),
    }
    assert sorted(p.name for p in (tmp_path / "out").iterdir()) == ["import.json", "other", "set"]
    lines = "\n".join(json.dumps(entry) for entry in (item(), item()))
    path = write_json(tmp_path, lines + "\n", "lines.jsonl")
    assert import_conversations(path, tmp_path / "lines")["kept"] == 2


@pytest.mark.parametrize(
    ("bad", "problem"),
    [
        ({}, "no `conversations`"),
        ("text", "no `conversations`"),
        (item("<image><image>"), "as many `<image>` as images are wanted"),
        (item("no tag"), "as many `<image>` as images are wanted"),
        (item(image=3), "`image` is neither a path nor a list of paths"),
        (item(video="a.mp4"), "videos"),
        (item("<image><video>"), "videos"),
        (item(answer=None), "a message that is no text"),
        (item(answer="\ud800"), "a message that is no text"),
        (item(subset="../../up"), "a `subset` that is no folder name"),
        (item(subset="x\ud800"), "a `subset` that is no folder name"),
        (item(subset="x" * 300), "a `subset` that is no folder name"),
        (item(id="\ud800"), "an `id` that is no text"),
        (item(image="a\ud800.png"), "`image` is neither a path nor a list of paths"),
        (with_junk(2), "messages do not alternate between human and gpt"),
        (with_junk(1), "messages do not alternate between human and gpt"),
        (
            {"conversations": [{"from": "gpt", "value": "a"}]},
            "messages do not alternate between human and gpt",
        ),
        (
            {"conversations": [{"from": "human", "value": "a"}]},
            "messages do not alternate between human and gpt",
        ),
        ({"conversations": [None, None]}, "messages do not alternate between human and gpt"),
    ],
)
def test_items_that_are_no_conversation_are_left_out_and_counted(tmp_path, bad, problem):
    path = write_json(tmp_path, [item(), bad])
    counts = import_conversations(path, tmp_path / "out")
    assert counts["left_out"] == {problem: 1}
    assert (counts["items"], counts["kept"]) == (2, 1)
    assert json.loads((tmp_path / "out" / "import.json").read_text()) == counts


def test_an_image_that_is_not_there_is_found_out_when_samples_are_drawn(tmp_path):
    from interlace.sampling.rows import examine

    path = write_json(tmp_path, [item(image="absent.png")])
    import_conversations(path, tmp_path / "out")
    values = pq.read_table(tmp_path / "out" / "set" / "train-00000-of-00001.parquet")
    entry = examine(values, complete({})).entry
    assert entry["reason"] == "missing_image"


@pytest.mark.parametrize("kind", ["device", "folder", "pipe", "large", "text", "absent", "nul"])
def test_only_image_files_of_sane_size_are_taken_in(tmp_path, monkeypatch, kind):
    import interlace.sampling.conversations as conversations

    monkeypatch.setattr(conversations, "MOST_IMAGE_BYTES", 1000)
    (tmp_path / "large.png").write_bytes(encoded("red") + b" " * 1000)
    (tmp_path / "text.png").write_text("root:x:0:0")
    os.mkfifo(tmp_path / "pipe")
    image, problem = {
        "device": ("/dev/zero", "not a regular file"),
        "folder": (".", "not a regular file"),
        "pipe": ("pipe", "not a regular file"),
        "large": ("large.png", "more than 1000 bytes"),
        "text": ("text.png", "not an image"),
        "absent": ("absent.png", "not there"),
        "nul": ("a\0.png", "not readable (ValueError)"),
    }[kind]
    path = write_json(tmp_path, [item(), item(image=image, id="bad")])
    counts = import_conversations(path, tmp_path / "out")
    assert counts["no_image"] == {problem: 1}
    taken = content(tmp_path / "out")
    assert taken["0"][0] == [encoded("red")]
    assert taken["bad"][0] == [None]


def test_deeply_nested_json_is_one_line(tmp_path):
    for name in ("deep.json", "deep.jsonl"):
        path = write_json(tmp_path, "[" * 100_000 + "]" * 100_000, name)
        with pytest.raises(InputError, match="nested too deep"):
            import_conversations(path, tmp_path / "out")


def test_files_that_are_no_list_are_one_line(tmp_path):
    for body, match in (("{}", "not a list"), ("[", "not valid JSON"), ("[]", "none of its 0")):
        path = write_json(tmp_path, body)
        with pytest.raises(InputError, match=match) as caught:
            import_conversations(path, tmp_path / "out")
        assert "\n" not in str(caught.value)
        assert not (tmp_path / "out").exists()
    with pytest.raises(InputError, match="holds no samples"):
        export_conversations(tmp_path / "absent", tmp_path / "out")
    with pytest.raises(SystemExit, match="usage"):
        main([])
    with pytest.raises(SystemExit, match="no such file"):
        main([str(tmp_path / "x.json"), str(tmp_path / "out")])


def test_samples_drawn_from_an_import_are_the_samples_that_were_exported(tmp_path):

    make_tiny_samples(tmp_path / "samples", rows=5)
    export_conversations(tmp_path / "samples", tmp_path / "out")
    import_conversations(tmp_path / "out" / JSON_NAME, tmp_path / "source")
    draw_samples(tmp_path / "source", tmp_path / "again", {"fraction": 1.0}, seed=0)
    before = content(tmp_path / "samples").values()
    after = content(tmp_path / "again").values()
    assert sorted(map(repr, after)) == sorted(map(repr, before))
    assert (tmp_path / "again" / "manifest.parquet").is_file()
    tables = [pq.read_table(path) for path in sorted((tmp_path / "again").glob("*/*.parquet"))]
    names = [name for table in tables for name in table["source_id"].to_pylist()]
    assert sorted(names) == sorted(content(tmp_path / "samples"))
