"""Footers that lie, are spoiled or end the process that reads them."""

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from interlace.sampling.footer_parser import PARSER, SPAN, FooterParser
from tests.unit.shards import IMAGES, TEXTS, footer_of, read, shard


@pytest.mark.parametrize("place", [-8, -7, -6])
def test_a_footer_that_lies_about_its_length_is_refused(tmp_path, place):
    path = shard(tmp_path / "in", "a", {"images": IMAGES, "texts": TEXTS})
    shard(tmp_path / "in", "b", {"images": IMAGES, "texts": TEXTS})
    data = bytearray(path.read_bytes())
    data[place] ^= 0x55
    path.write_bytes(data)
    found, _ = read(tmp_path / "in", tmp_path / "cache")
    assert list(found["s"].refused) == ["a.parquet"]


def test_no_flipped_byte_in_a_footer_ends_the_planning(tmp_path):
    columns = {"images": IMAGES, "texts": TEXTS}
    path = shard(tmp_path / "in", "a", columns)
    for name in "bc":
        shard(tmp_path / "in", name, columns)
    data, footer = path.read_bytes(), footer_of(path)
    rng = np.random.default_rng(0)
    refused = 0
    for number, place in enumerate(rng.choice(len(footer), 150, replace=False)):
        flipped = bytearray(footer)
        flipped[place] ^= 1 << int(rng.integers(8))
        found = PARSER.parse(bytes(flipped), len(data))
        assert (found.refused is None) == bool(found.schema)
        refused += found.refused is not None
        if number < 10:
            path.write_bytes(data[: -len(footer)] + flipped)
            usable = read(tmp_path / "in", tmp_path / f"cache{place}")[0]["s"].groups["shard"]
            assert {"b.parquet", "c.parquet"} <= set(usable)
    assert 20 < refused < 150


def statistics_footer(tmp_path, rows=20, group=5):
    """Return footer and file size of a file whose columns have statistics."""
    path = tmp_path / "statistics.parquet"
    table = pa.table({"a": range(rows), "b": [f"q{i}" for i in range(rows)]})
    pq.write_table(table, path, row_group_size=group)
    return footer_of(path), path.stat().st_size


def test_a_footer_that_ends_the_reader_is_refused_and_the_next_is_read(tmp_path):
    footer, size = statistics_footer(tmp_path)
    parser, rng, died = FooterParser(), np.random.default_rng(0), 0
    for place in rng.integers(0, len(footer) - 8, 400):
        flipped = bytearray(footer)
        flipped[place] ^= 1 << int(rng.integers(8))
        found = parser.parse(bytes(flipped), size)
        assert (found.refused is None) == bool(found.schema)
        died += "does not survive" in (found.refused or "")
        if died:
            break
    assert died, "no flipped bit reaches the fault that this guards against"
    again = parser.parse(footer, size)
    parser.close()
    assert again.refused is None
    assert again.groups[:, 0].tolist() == [5] * 4


def varint(value):
    out = b""
    while value > 127:
        out, value = out + bytes([value & 127 | 128]), value >> 7
    return out + bytes([value])


@pytest.mark.parametrize("claimed", [10**12, 21])
def test_row_counts_that_cannot_be_are_refused(tmp_path, claimed):
    footer, size = statistics_footer(tmp_path, rows=20, group=20)
    body = footer[:-8]
    refused = []
    for place in range(len(body) - 1):
        if body[place : place + 2] == b"\x16\x28":  # an i64 field that says 20
            changed = body[: place + 1] + varint(2 * claimed) + body[place + 2 :]
            whole = changed + len(changed).to_bytes(4, "little") + b"PAR1"
            longer = size + len(whole) - len(footer)
            refused.append(PARSER.parse(whole, longer).refused or "")
    assert PARSER.parse(footer, size).refused is None
    assert any(f"row group 0 has {claimed} rows and a column of 20 values" in r for r in refused)
    assert any(f"{claimed} rows, but 20 in its row groups" in text for text in refused)


def test_null_rows_without_end_are_refused(tmp_path):
    path = tmp_path / "a.parquet"
    pq.write_table(pa.table({"a": pa.nulls(5_000_000, pa.int8())}), path, row_group_size=5_000_000)
    found = PARSER.parse(footer_of(path), path.stat().st_size)
    assert "claims 5000000 rows in" in found.refused


@pytest.mark.parametrize("container", [pa.list_, pa.large_list])
def test_items_of_images_and_texts_are_counted_an_empty_list_as_one(tmp_path, container):
    images, texts = (
        pa.array(lists, container(kind.value_type))
        for lists, kind in (
            ([None, [], [{"bytes": b"a"}] * 3, [None, {"bytes": b"b"}]], IMAGES),
            ([[{"user": "q"}] * count for count in (1, 7, 2, 0)], TEXTS),
        )
    )
    path = tmp_path / "a.parquet"
    table = pa.table({"images": images, "texts": texts, "n": [[1, 2]] * 4})
    pq.write_table(table, path, row_group_size=3)
    groups = PARSER.parse(footer_of(path), path.stat().st_size).groups
    found = [dict(zip(SPAN, group, strict=True)) for group in groups.tolist()]
    assert [(group["rows"], group["images"], group["turns"]) for group in found] == [
        (3, 1 + 1 + 3, 1 + 7 + 2),
        (1, 2, 1),
    ]


def test_columns_that_are_absent_or_no_lists_have_an_item_a_row(tmp_path):
    path = tmp_path / "a.parquet"
    pq.write_table(pa.table({"images": pa.nulls(4), "n": range(4)}), path)
    (group,) = PARSER.parse(footer_of(path), path.stat().st_size).groups.tolist()
    assert dict(zip(SPAN, group, strict=True)) | {"images": 4, "turns": 4} == dict(
        zip(SPAN, group, strict=True)
    )
