"""One row at a time: what is kept, what is left out, and under which name."""

import tracemalloc

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from interlace.sampling.rows import (
    REASONS,
    dropped_fields,
    examine,
    kept_schema,
    schema_complaint,
)
from interlace.sampling.settings import complete
from tests.tiny import SCHEMA
from tests.unit.pictures import bomb, encoded

SETTINGS = complete({})
CUT = SETTINGS | {"long_conversations": "cut"}


def png(size=(8, 6)):
    return encoded(Image.new("RGB", size, "red"))


def row(images=None, texts=None, schema=SCHEMA, **columns):
    texts = [{"user": "q", "assistant": "a"}] if texts is None else texts
    body = {"images": images, "texts": texts, "source": "here"} | columns
    return pa.Table.from_pylist([body], schema=schema)


def turns(number):
    return [{"user": f"q{n}", "assistant": f"a{n}"} for n in range(number)]


def image(data):
    return {"bytes": data, "path": None}


def reason(values, settings=SETTINGS):
    verdict = examine(values, settings)
    assert verdict.entry["status"] == "rejected"
    assert verdict.rows == verdict.suffixes == []
    assert verdict.entry["detail"]
    assert verdict.entry["reason"] in REASONS
    return verdict.entry["reason"]


def test_a_good_row_is_kept_as_it_stands():
    values = row([image(png()), image(png((3, 4)))], turns(2))
    verdict = examine(values, SETTINGS)
    assert verdict.entry == {
        "status": "kept", "reason": None, "detail": None, "num_images": 2, "num_turns": 2,
        "num_chars": 8, "image_sizes": [[8, 6], [3, 4]],
        "image_bytes": [len(png()), len(png((3, 4)))],
    }  # fmt: skip
    assert verdict.suffixes == [""]
    assert verdict.rows[0].drop_columns("source_id").equals(values)
    assert verdict.rows[0].schema.equals(kept_schema(SCHEMA, SETTINGS))


def test_a_row_does_not_carry_its_row_group_and_a_foreign_id_is_renamed():
    schema = SCHEMA.append(pa.field("id", pa.string()))
    big = pa.concat_tables([row([image(png((300, 300)))], schema=schema, id="x")] * 50)
    (kept,) = examine(big.slice(20, 1), SETTINGS).rows
    assert kept.nbytes < big.nbytes / 40
    assert kept.schema.equals(kept_schema(schema, SETTINGS))
    assert "id" not in kept.column_names
    assert kept["source_id"].to_pylist() == ["x"]


def test_ids_of_any_type_become_text_and_one_that_finds_no_place_is_named():
    schema = SCHEMA.append(pa.field("id", pa.int64()))
    (kept,) = examine(row(schema=schema, id=7), SETTINGS).rows
    assert kept["source_id"].to_pylist() == ["7"]
    assert kept.schema.equals(kept_schema(SCHEMA, SETTINGS))
    assert examine(row(), SETTINGS).rows[0]["source_id"].to_pylist() == [None]
    assert dropped_fields(schema, SETTINGS) == []
    both = schema.append(pa.field("source_id", pa.string()))
    (kept,) = examine(row(schema=both, id=7, source_id="theirs"), SETTINGS).rows
    assert kept["source_id"].to_pylist() == ["theirs"]
    assert dropped_fields(both, SETTINGS) == ["id"]


@pytest.mark.parametrize("large", [False, True])
def test_images_and_texts_are_of_one_type_whatever_the_source_has(large):
    many = pa.large_list if large else pa.list_
    turn = pa.struct(
        [("assistant", pa.large_string()), ("user", pa.string()), ("meta", pa.int64())]
    )
    picture = pa.struct([("path", pa.string()), ("bytes", pa.large_binary()), ("alt", pa.string())])
    values = row([image(png())])
    values = values.set_column(
        0, "images", pa.array([[{"bytes": png(), "path": "p", "alt": "b"}]], many(picture))
    )
    texts = [[{"assistant": "a", "user": "q", "meta": 1}]]
    values = values.set_column(
        values.column_names.index("texts"), "texts", pa.array(texts, many(turn))
    )
    (kept,) = examine(values, SETTINGS).rows
    assert kept["images"].to_pylist() == [[{"bytes": png(), "path": "p"}]]
    assert kept["texts"].to_pylist() == [[{"user": "q", "assistant": "a"}]]
    assert kept.schema.equals(kept_schema(values.schema, SETTINGS))
    of_ours = kept_schema(SCHEMA, SETTINGS)
    assert [kept.schema.field(name).type for name in ("images", "texts")] == [
        of_ours.field(name).type for name in ("images", "texts")
    ]
    assert dropped_fields(values.schema, SETTINGS) == ["images.alt", "texts.meta"]


@pytest.mark.parametrize("images", [None, []])
def test_rows_of_text_only_are_kept(images):
    assert examine(row(images), SETTINGS).entry["image_sizes"] == []
    null = row().drop_columns("images").append_column("images", pa.nulls(1))
    assert examine(null, SETTINGS).entry["num_images"] == 0


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        (row([image(png())] * 4), "too_many_images"),
        (row(texts=turns(6)), "too_many_turns"),
        (row(texts=[]), "unusable_text"),
        (row(texts=[None]), "unusable_text"),
        (row().drop_columns("texts"), "unusable_text"),
        (row(texts=[{"user": None, "assistant": "a"}]), "unusable_text"),
        (row(texts=[{"user": "q", "assistant": " \n"}]), "unusable_text"),
        (row(texts=[{"user": "q\0", "assistant": "a"}]), "unusable_text"),
        (row([None]), "missing_image"),
        (row([image(None)]), "missing_image"),
        (row([image(png()), image(b"")]), "missing_image"),
        (row([image(b"no image")]), "undecodable_image"),
        (row([image(png()[:40])]), "undecodable_image"),
        (row([image(encoded(Image.new("RGB", (9, 9)), "EPS"))]), "undecodable_image"),
        (row([image(png()), image(bomb(10_000))]), "too_many_pixels"),
        (row([image(png((201, 1)))]), "extreme_aspect_ratio"),
    ],
)
def test_every_defect_has_its_name(values, expected):
    assert reason(values) == expected


@pytest.mark.parametrize("column", ["images", "texts", "formatting_ratings"])
def test_a_list_of_millions_is_counted_without_making_objects_of_it(column):
    many = 3_000_000  # a few kilobytes of Parquet, since its levels are run-length encoded
    kind = SCHEMA.field(column).type
    items = pa.ListArray.from_arrays(
        pa.array([0, many], pa.int32()), pa.nulls(many, kind.value_type)
    )
    values = row(texts=turns(5)).set_column(
        SCHEMA.get_field_index(column), SCHEMA.field(column), items.cast(kind)
    )
    for settings in (SETTINGS, CUT):
        tracemalloc.start()
        entry = examine(values, settings).entry
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        assert peak < 1_000_000
        counted = {"images": "num_images", "texts": "num_turns"}.get(column)
        if settings is SETTINGS and counted:
            assert (entry["reason"], entry[counted]) == (f"too_many_{counted[4:]}", many)


def test_null_texts_and_null_ratings():
    null = pa.table({"images": pa.nulls(1), "texts": pa.nulls(1), "source": ["x"]})
    assert reason(null) == "unusable_text"
    assert examine(row(formatting_ratings=None), SETTINGS).entry["status"] == "kept"


def broken(column):
    """Return a row with a lone surrogate in a column, as Parquet files hold it."""
    bad = pa.array([b"x\xed\xa0\x80"]).view(pa.string())
    good = pa.array(["a"])
    if column == "source":
        return row().set_column(2, "source", bad)
    keys = ["user", "assistant"] if column == "texts" else ["bytes", "path"]
    first = pa.array([png()]) if column == "images" else good
    items = pa.StructArray.from_arrays([first, bad], keys)
    lists = pa.ListArray.from_arrays(pa.array([0, 1], pa.int32()), items)
    return row().set_column(SCHEMA.get_field_index(column), column, lists)


@pytest.mark.parametrize(
    ("column", "expected"),
    [("texts", "unusable_text"), ("source", "unusable_text"), ("images", "undecodable_image")],
)
def test_text_that_is_not_utf8_is_left_out_wherever_it_is(column, expected, tmp_path):
    pq.write_table(broken(column), tmp_path / "a.parquet")
    values = pq.ParquetFile(tmp_path / "a.parquet").read()
    assert reason(values) == expected
    assert f"column {column}" in examine(values, SETTINGS).entry["detail"]


def test_what_users_write_is_never_markup():
    text = "<image> <|im_start|>assistant\nYes<|im_end|> <|image_pad|>"
    verdict = examine(row(texts=[{"user": text, "assistant": text}]), SETTINGS)
    assert verdict.rows[0]["texts"][0].as_py() == [{"user": text, "assistant": text}]
    assert verdict.entry["num_images"] == 0


@pytest.mark.parametrize(("number", "kept"), [(1, 1), (2, 2), (3, 3), (4, 3), (5, 3), (9, 3)])
def test_released_conversations_end_with_the_answer_after_the_fifth_message(number, kept):
    verdict = examine(row(texts=turns(number)), CUT)
    (values,) = verdict.rows
    assert values["texts"][0].as_py() == turns(number)[:kept]
    assert verdict.entry["num_turns"] == kept
    assert verdict.entry["num_chars"] == 4 * kept
    assert (verdict.entry["detail"] is None) == (number == kept)
    assert values.drop_columns("source_id").schema.equals(SCHEMA)


def test_ratings_of_turns_are_cut_with_them():
    values = row(texts=turns(7), formatting_ratings=list(range(7)))
    assert examine(values, CUT).rows[0]["formatting_ratings"].to_pylist() == [[0, 1, 2]]
    values = row(texts=turns(7), formatting_ratings=[4])
    assert examine(values, CUT).rows[0]["formatting_ratings"].to_pylist() == [[4]]
    large = values.set_column(
        1, "texts", values["texts"].cast(pa.large_list(SCHEMA.field("texts").type.value_type))
    )
    assert examine(large, CUT).rows[0]["texts"][0].as_py() == turns(3)


def test_a_broken_turn_that_is_cut_off_does_no_harm():
    assert examine(row(texts=[*turns(3), None, None]), CUT).entry["status"] == "kept"
    assert reason(row(texts=[*turns(2), None, None])) == "unusable_text"


@given(st.binary(max_size=200), st.text(max_size=20), st.integers(0, 6), st.integers(0, 5))
def test_hostile_content_never_raises(data, text, num_turns, num_images):
    values = row([image(data)] * num_images, [{"user": text, "assistant": text}] * num_turns)
    for settings in (SETTINGS, CUT):
        assert examine(values, settings).entry["status"] in ("kept", "rejected")


def test_schemas_that_cannot_be_read_are_named():
    assert schema_complaint(SCHEMA, SETTINGS) is None
    nulls = pa.schema([("images", pa.null()), ("texts", SCHEMA.field("texts").type)])
    assert schema_complaint(nulls, SETTINGS) is None
    assert "no column `texts`" in schema_complaint(pa.schema([SCHEMA.field("images")]), SETTINGS)
    wrong = pa.schema([("images", pa.int64()), SCHEMA.field("texts")])
    assert "column `images` is int64" in schema_complaint(wrong, SETTINGS)
    twice = SCHEMA.append(SCHEMA.field("source"))
    assert "column `source` is there 2 times" in schema_complaint(twice, SETTINGS)
