"""Columns of every type that Parquet brings back: one that Python or Arrow cannot hold ends no run."""

import datetime
import json

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from interlace.sampling.rows import examine, kept_schema, schema_complaint
from interlace.sampling.schemas import conform, plain, unify
from interlace.sampling.settings import complete
from tests.tiny import SCHEMA
from tests.unit.sample_rows import draw_samples, manifest, png
from tests.unit.sample_rows import row as good_row

SETTINGS = complete({})
ROWS = 6
FAR = pa.array([2**62] * ROWS)  # a time that Python's own types cannot hold
TEXT, BYTES = ["a", "b"] * 3, [b"a", b"\xff"] * 3
CATEGORIES = pa.array(TEXT).dictionary_encode()
NOWHERE = pa.array([1] * ROWS, pa.timestamp("us", "Mars/Phobos"))


def listed(array):
    return pa.ListArray.from_arrays(pa.array(range(ROWS + 1), pa.int32()), array)


def struct(**columns):
    return pa.StructArray.from_arrays(list(columns.values()), list(columns))


COLUMNS = {
    "categories": CATEGORIES,
    "categories of bytes": pa.array(BYTES).dictionary_encode(),
    "list of categories": listed(CATEGORIES),
    "struct of categories": struct(x=CATEGORIES, y=pa.array(TEXT)),
    "list of structs of categories": listed(struct(x=CATEGORIES)),
    "text view": pa.array(TEXT, pa.string_view()),
    "byte view": pa.array(BYTES, pa.binary_view()),
    "list of text views": listed(pa.array(TEXT, pa.string_view())),
    "JSON": pa.array(['{"a": 1}'] * ROWS, pa.json_()),
    "UUID": pa.array([bytes(range(16))] * ROWS, pa.uuid()),
    "JSON views": pa.array(["[]"] * ROWS, pa.json_(pa.string_view())),
    "list of JSON": listed(pa.array(["[]"] * ROWS, pa.json_())),
    "far timestamp": FAR.cast(pa.timestamp("us")),
    "timestamp nowhere": NOWHERE,
    "far date": pa.array([2**30] * ROWS, pa.int32()).cast(pa.date32()),
    "far duration": FAR.cast(pa.duration("s")),
    "time": pa.array([1] * ROWS, pa.time64("us")),
    "half": pa.nulls(ROWS, pa.float16()),
    "decimal": pa.nulls(ROWS, pa.decimal256(50, 3)),
    "map": pa.array([[("k", 1)]] * ROWS, pa.map_(pa.string(), pa.int64())),
    "pairs": pa.array([[1, 2]] * ROWS, pa.list_(pa.int64(), 2)),
    "large": pa.array(TEXT, pa.large_string()),
    "null": pa.nulls(ROWS),
}


def table(**columns):
    body = pa.Table.from_pylist([good_row(user=f"q{n}") for n in range(ROWS)], schema=SCHEMA)
    for name, column in columns.items():
        if name in body.column_names:
            body = body.drop_columns(name)
        body = body.append_column(name, column)
    return body


def draw(tmp_path, *shards, **options):
    """Draw all rows of a subset of these shards; return what was counted and what was written."""
    folder = tmp_path / "in" / "s"
    folder.mkdir(parents=True)
    for number, shard in enumerate(shards):
        pq.write_table(shard, folder / f"{number}.parquet", row_group_size=4)
    draw_samples(tmp_path / "in", tmp_path / "out", {"fraction": 1.0} | options, seed=0)
    body = json.loads((tmp_path / "out" / "samples.json").read_text())["subsets"]["s"]
    (file,) = (tmp_path / "out" / "s").glob("*.parquet")
    return body, pq.read_table(file).sort_by("id")


@pytest.mark.parametrize("unit", ["row", "row_group", "first"])
def test_columns_of_every_type_are_written_beside_the_samples(tmp_path, unit):
    shard = table(**COLUMNS)
    body, written = draw(tmp_path, shard, unit=unit)
    assert (body["kept"], body["refused_shards"]) == (ROWS, 0)
    assert not any(body["rejected"].values())
    for name in ("categories", "list of structs of categories", "text view", "far date"):
        assert (
            written[name]
            .cast(plain(shard.schema).field(name).type)
            .equals(conform(shard, plain(shard.schema))[name])
        )
    assert written["categories"].type == pa.string()


@pytest.mark.parametrize("kind", sorted(COLUMNS))
def test_an_id_of_any_type_becomes_text(tmp_path, kind):
    body, written = draw(tmp_path, table(id=COLUMNS[kind]))
    assert body["kept"] == ROWS
    assert written["source_id"].type == pa.string()
    expected = {
        "categories": TEXT,
        "far timestamp": [str(2**62)] * ROWS,
        "timestamp nowhere": ["1"] * ROWS,
        "far date": [str(2**30)] * ROWS,
        "time": ["00:00:00.000001"] * ROWS,
        "UUID": ["00010203-0405-0607-0809-0a0b0c0d0e0f"] * ROWS,
        "null": [None] * ROWS,
    }
    if kind in expected:
        assert written["source_id"].to_pylist() == expected[kind]


# Arrow writes no views within lists.
@pytest.mark.parametrize("kind", sorted(kind for kind in COLUMNS if "view" not in kind))
def test_fields_of_images_and_texts_that_are_not_written_are_not_looked_at(tmp_path, kind):
    extra = COLUMNS[kind]
    shard = table(
        images=listed(struct(bytes=pa.array([png()] * ROWS), path=pa.array(TEXT), taken=extra)),
        texts=listed(struct(user=pa.array(TEXT), assistant=pa.array(TEXT), when=extra)),
    )
    body, written = draw(tmp_path, shard)
    assert body["kept"] == ROWS
    assert body["dropped_fields"] == ["images.taken", "texts.when"]
    assert written["images"].to_pylist() == [[{"bytes": png(), "path": p}] for p in TEXT]


def test_what_a_record_is_made_of_may_be_stored_as_dictionaries(tmp_path):
    pictures = pa.array([png()] * ROWS).dictionary_encode()
    shard = table(
        images=listed(struct(bytes=pictures, path=CATEGORIES)),
        texts=listed(struct(user=CATEGORIES, assistant=CATEGORIES)),
    )
    body, written = draw(tmp_path, shard)
    assert body["kept"] == ROWS
    assert written["texts"].to_pylist() == [[{"user": t, "assistant": t}] for t in TEXT]
    assert written["images"].to_pylist() == [[{"bytes": png(), "path": p}] for p in TEXT]


def test_shards_with_categories_views_and_text_are_of_one_subset(tmp_path):
    shards = [
        table(source=pa.array(TEXT)),
        table(source=CATEGORIES),
        table(source=pa.array(TEXT, pa.string_view())),
    ]
    body, written = draw(tmp_path, *shards)
    assert (body["kept"], body["refused"]) == (3 * ROWS, {})
    assert sorted(written["source"].to_pylist()) == sorted(3 * TEXT)


def test_a_row_that_nobody_foresaw_is_counted_and_the_others_are_kept(tmp_path):
    kinds = pa.array([{"at": n} for n in [0, 1, 2**62, 3, 4, 5]])
    kinds = struct(at=kinds.field("at").cast(pa.timestamp("us")))
    body, written = draw(tmp_path, table(id=kinds))  # such an id has no text of Arrow's either
    assert (body["kept"], body["rejected"]["unreadable_row"]) == (ROWS - 1, 1)
    assert len(written) == ROWS - 1
    (entry,) = (e for e in manifest(tmp_path / "out") if e["status"] == "rejected")
    assert (entry["row"], entry["reason"]) == (2, "unreadable_row")
    assert entry["detail"].startswith("OverflowError: ")


@pytest.mark.parametrize("error", [MemoryError, AssertionError])
def test_what_is_not_the_rows_fault_is_not_laid_on_it(monkeypatch, error):
    def fail(data):
        raise error

    monkeypatch.setattr("interlace.sampling.rows.decode_image", fail)
    with pytest.raises(error):
        examine(table().slice(0, 1), SETTINGS)


def test_a_path_of_another_type_is_survived():
    pictures = listed(struct(bytes=pa.array([png()] * ROWS), path=pa.array(range(ROWS))))
    entry = examine(table(images=pictures).slice(0, 1), SETTINGS).entry
    assert (entry["status"], entry["reason"]) == ("rejected", "unreadable_row")


def test_lists_of_views_are_lists_to_the_check_of_columns():
    turn = pa.struct([("user", pa.string_view()), ("assistant", CATEGORIES.type)])
    schema = pa.schema([("images", pa.null()), ("texts", pa.list_(turn))])
    assert schema_complaint(schema, SETTINGS) is None
    field = kept_schema(schema.append(pa.field("x", CATEGORIES.type)), SETTINGS).field("x")
    assert field.type == pa.string()


LEAVES = st.sampled_from(
    [
        (pa.dictionary(pa.int8(), pa.string()), "a", "b"),
        (pa.dictionary(pa.int32(), pa.binary()), b"a", b""),
        (pa.string_view(), "short", "longer than what fits in a view"),
        (pa.binary_view(), b"", b"longer than what fits in a view"),
        (pa.string(), "a", ""),
        (pa.int64(), 1, -1),
        (pa.timestamp("us"), datetime.datetime(2020, 1, 1), None),
    ]
)


def nested(inner):
    """Return types that hold `inner`, each with two values."""
    return st.one_of(
        inner.map(lambda t: (pa.list_(t[0]), [t[1], t[2], None], [])),
        inner.map(lambda t: (pa.large_list(t[0]), [], [t[2]])),
        inner.map(lambda t: (pa.list_(t[0], 2), [t[1], t[2]], [None, t[1]])),
        inner.map(lambda t: (pa.struct([("x", t[0]), ("y", pa.int64())]), {"x": t[1]}, {"y": 1})),
        inner.map(lambda t: (pa.map_(pa.string(), t[0]), [("k", t[1])], [])),
    )


def has_dictionary_or_view(kind):
    if kind.num_fields:
        return any(has_dictionary_or_view(kind.field(i).type) for i in range(kind.num_fields))
    checks = (pa.types.is_dictionary, pa.types.is_string_view, pa.types.is_binary_view)
    return any(check(kind) for check in checks)


@settings(max_examples=60, deadline=None)
@given(st.recursive(LEAVES, nested, max_leaves=3))
def test_dictionaries_and_views_are_decoded_however_deep_they_are(typed):
    kind, *values = typed
    given_table = pa.table({"x": pa.array([values[0], None, values[1]], kind)})
    schema, contradicting = unify([given_table.schema, plain(given_table.schema)])
    assert not contradicting
    assert not has_dictionary_or_view(schema.field("x").type)
    conformed = conform(given_table, schema)
    conformed.validate(full=True)
    assert conformed.schema == schema
    assert conformed.to_pylist() == given_table.to_pylist()
    conformed.take([2])
