"""The row groups of a data set as a table: its file, and what follows from it without a request."""

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from hypothesis import given
from hypothesis import strategies as st

from interlace.sampling.index import GROUPS, SubsetFooters, load_index, save_index
from interlace.sampling.settings import complete
from tests.tiny import SCHEMA, make_tiny_finevision
from tests.unit.shards import SETTINGS, read, shard


def test_an_index_comes_back_whole_or_by_subset(tmp_path):
    found, _ = read(make_tiny_finevision(tmp_path / "in"), tmp_path / "cache")
    save_index(tmp_path / "index.parquet", found.values())
    loaded = load_index(tmp_path / "index.parquet")
    assert [s.name for s in loaded] == list(found)
    for subset in loaded:
        alone = load_index(tmp_path / "index.parquet", subset.name)[0]
        for other in (subset, alone):
            assert other.schema == found[subset.name].schema
            for key, values in found[subset.name].groups.items():
                if key != "schema":
                    assert other.groups[key].tolist() == values.tolist()


def subset_of(groups):
    """Return a subset of row groups of (rows, items of images, items of texts)."""
    rows = [
        {
            "subset": "s",
            "shard": "a",
            "schema": 0,
            "row_group": i,
            "rows": n,
            "images": m,
            "turns": t,
        }
        for i, (n, m, t) in enumerate(groups)
    ]
    return SubsetFooters("s", pa.Table.from_pylist(rows, schema=GROUPS), (SCHEMA,))


@given(
    st.lists(st.tuples(st.integers(0, 6), st.integers(0, 9)), min_size=1, max_size=12),
    st.integers(0, 4),
    st.integers(1, 6),
    st.sampled_from(["reject", "cut"]),
)
def test_no_limit_rejects_a_row_that_is_said_to_be_sure(rows, max_images, max_turns, long):
    items = [[max(1, value) for value in column] for column in zip(*rows, strict=True)]
    settings = complete(
        {"max_images": max_images, "max_turns": max_turns, "long_conversations": long}
    )
    (sure,) = subset_of([(len(rows), *map(sum, items))]).sure(settings)
    within = [
        images <= max_images and (turns <= max_turns or long == "cut") for images, turns in rows
    ]
    assert 0 <= sure <= sum(within)


def test_rows_are_sure_as_far_as_the_items_of_their_group_prove_it():
    subset = subset_of([(10, 10, 10), (10, 13, 10), (10, 10, 21), (10, 40, 99)])
    assert subset.sure(SETTINGS).tolist() == [10, 9, 8, 0]
    assert subset.sure(SETTINGS | {"long_conversations": "cut"}).tolist() == [10, 9, 10, 0]
    assert subset.sure(SETTINGS | {"max_turns": 11}).tolist() == [10, 9, 9, 0]
    assert subset.sure(SETTINGS | {"max_images": 0}).tolist() == [0] * 4
    assert subset.sure(SETTINGS | {"format": "chartqa"}).tolist() == [10] * 4


def test_footers_count_again_where_they_are_read_again(tmp_path):
    for name in "ab":
        shard(tmp_path / "in", name, dict(zip(SCHEMA.names, SCHEMA.types, strict=True)))
    subset = read(tmp_path / "in", tmp_path / "cache")[0]["s"]
    lengths, footer = subset.groups["length"], int(subset.groups["footer"][0])
    assert len(lengths) == 4
    some = np.array([0, 1, 1])
    assert subset.bytes_of(some, "a commit") == lengths[some].sum()
    assert subset.bytes_of(some, None) == lengths[some].sum() + footer
    assert subset.bytes_of(np.array([0, 2]), None) == lengths[[0, 2]].sum() + 2 * footer
    assert subset.bytes_of(np.empty(0, int), None) == 0


def test_a_subset_is_known_by_its_row_groups_and_their_footers(tmp_path):
    shard(tmp_path / "in", "a", dict(zip(SCHEMA.names, SCHEMA.types, strict=True)))
    before, again = (read(tmp_path / "in", tmp_path / c)[0]["s"].fingerprint for c in "xy")
    path = tmp_path / "in" / "s" / "a.parquet"
    size = path.stat().st_size
    table = pq.read_table(path)
    pq.write_table(table.replace_schema_metadata({"a": "b"}), path, row_group_size=3)
    assert path.stat().st_size != size
    assert before == again != read(tmp_path / "in", tmp_path / "z")[0]["s"].fingerprint
