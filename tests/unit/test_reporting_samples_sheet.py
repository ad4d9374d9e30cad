"""Contact sheets: which samples are shown, that all of it fits, and that it is the same each time."""

import io

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from interlace.data.chat import SampleDataset
from interlace.errors import InputError
from interlace.io import folder_digest
from interlace.reporting import contact_sheet
from interlace.reporting.contact_sheet import _choose, _load_fonts, _wrap, write_contact_sheets
from tests.tiny import SCHEMA, make_tiny_samples


def picture(size, colour="red"):
    buffer = io.BytesIO()
    Image.new("RGB", size, colour).save(buffer, "PNG")
    return {"bytes": buffer.getvalue(), "path": None}


def write(root, subsets):
    """Write `{subset: [(images, user, assistant, turns)]}` as samples."""
    schema = SCHEMA.append(pa.field("id", pa.string()))
    for name, rows in subsets.items():
        (root / name).mkdir(parents=True)
        body = [
            {"images": images, "texts": [{"user": user, "assistant": answer}] * turns, "id": f"{i}"}
            for i, (images, user, answer, turns) in enumerate(rows)
        ]
        table = pa.Table.from_pylist(body, schema=schema)
        pq.write_table(table, root / name / "train-00000-of-00001.parquet")
    return root


def test_the_same_samples_give_the_same_pages(tmp_path):
    samples = make_tiny_samples(tmp_path / "samples", rows=9)
    for name, seed in (("a", 1), ("b", 1), ("c", 2)):
        (page,) = write_contact_sheets(samples, tmp_path / name, seed)
        assert page == tmp_path / name / "page01.png"
    assert folder_digest(tmp_path / "a") == folder_digest(tmp_path / "b")
    assert folder_digest(tmp_path / "a") != folder_digest(tmp_path / "c")


def test_up_to_four_samples_of_each_subset_whatever_stands_beside_it(tmp_path):
    question = ([picture((8, 8))], "q", "a", 1)
    few = write(tmp_path / "few", {"b": [question] * 9, "c": [question] * 2})
    many = write(tmp_path / "many", {"a": [question] * 5, "b": [question] * 9})
    shown = []
    for root in (few, many):
        dataset = SampleDataset(root)
        chosen = _choose(dataset, 3)
        size, positions = chosen["b"]
        assert size == 9
        shown.append([dataset.ids[position] for position in positions])
    assert shown[0] == shown[1]
    assert len(set(shown[0])) == 4
    assert len(_choose(SampleDataset(few), 3)["c"][1]) == 2


def test_long_texts_and_odd_images_fit(tmp_path, monkeypatch):
    odd = [
        ([picture((1, 1))], "word " * 500, "ok", 1),
        ([picture((3000, 15))], "W" * 3000, "because " * 300, 5),
        ([picture((200, 900))] * 3, "图片 \x07?", "\u202eetaoin", 2),
        (None, "x " * 999, "y" * 999, 3),
    ]
    names = [f"subset_{number}(x+y)" for number in range(5)] + ["n" * 200]
    samples = write(tmp_path / "samples", dict.fromkeys(names, odd))
    monkeypatch.setattr(contact_sheet, "SUBSETS_PER_PAGE", 2)
    pages = write_contact_sheets(samples, tmp_path / "out", 0, ["stand-in data"])
    assert [page.name for page in pages] == ["page01.png", "page02.png", "page03.png"]
    for path in pages:
        with Image.open(path) as page:
            drawn = page.convert("RGB")
            width, height = drawn.size
            margin = contact_sheet._MARGIN - 3  # a glyph may lean out of its own box
            for left in (0, width - margin):
                edge = drawn.crop((left, 0, left + margin, height))
                assert edge.getextrema() == ((255, 255),) * 3


def test_pages_beyond_the_limit_are_left_out_and_that_is_said(tmp_path, monkeypatch):
    question = (None, "q", "a", 1)
    samples = write(tmp_path / "samples", {f"s{n}": [question] for n in range(5)})
    monkeypatch.setattr(contact_sheet, "SUBSETS_PER_PAGE", 1)
    monkeypatch.setattr(contact_sheet, "MAX_PAGES", 2)
    said = []
    draw = contact_sheet._draw_page
    monkeypatch.setattr(
        contact_sheet, "_draw_page", lambda *args: said.append(args[2]) or draw(*args)
    )
    assert len(write_contact_sheets(samples, tmp_path / "out", 0)) == 2
    assert all("the first 2 of 5 subsets" in texts for texts in said)


FONT = _load_fonts().text


@given(st.text(max_size=300), st.integers(1, 8))
def test_wrapped_lines_are_as_wide_and_as_many_as_there_is_room(text, most):
    font = FONT
    lines = _wrap(text, font, 180, most)
    assert len(lines) <= most
    assert all(font.getlength(line) <= 180 for line in lines)
    shown = "".join(lines).replace(" ", "")
    if not (lines and lines[-1].endswith("…")):
        assert shown == "".join(c if c.isprintable() else "·" for w in text.split() for c in w)


def test_a_folder_without_samples_is_named(tmp_path):
    with pytest.raises(InputError, match="holds no samples"):
        write_contact_sheets(tmp_path, tmp_path / "out", 0)
    assert not (tmp_path / "out").exists()
