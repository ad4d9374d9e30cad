"""The samples as a user of `datasets` sees them."""

import json

import pyarrow as pa
import pyarrow.dataset
import pyarrow.parquet as pq
import pytest

from interlace.data.chat import load_records
from tests.tiny import SCHEMA, make_tiny_finevision
from tests.unit.sample_rows import draw_samples

datasets = pytest.importorskip("datasets")


@pytest.fixture
def samples(tmp_path):
    make_tiny_finevision(tmp_path / "data", rows=6)
    # A subset of text only, whose images are null throughout, comes first by its name.
    (tmp_path / "data" / "a_text").mkdir()
    schema = SCHEMA.set(0, pa.field("images", pa.null()))
    texts = [{"texts": [{"user": f"{n}?", "assistant": "yes"}], "source": "here"} for n in range(4)]
    table = pa.Table.from_pylist(texts, schema=schema)
    pq.write_table(table, tmp_path / "data" / "a_text" / "train-00000-of-00001.parquet")
    draw_samples(tmp_path / "data", tmp_path / "samples", {"fraction": 0.5}, seed=0)
    return tmp_path / "samples"


def load(files, tmp_path):
    return datasets.load_dataset(
        "parquet", data_files=[str(f) for f in files], split="train",
        cache_dir=str(tmp_path / "cache"),
    )  # fmt: skip


def test_every_subset_loads_with_its_images_decoded(samples, tmp_path):
    records = {record.id: record for record in load_records(samples)}
    for path in sorted(samples.glob("*/*.parquet")):
        for row in load([path], tmp_path):
            record = records.pop(row["id"])
            assert row["texts"] == record.turns
            sizes = [image.size for image in row["images"] or []]
            assert sizes == [image.size for image in record.images]
    assert not records


def test_all_subsets_load_as_one(samples, tmp_path):
    loaded = load(sorted(samples.glob("*/*.parquet")), tmp_path)
    assert sorted(loaded["id"]) == sorted(load_records(samples).ids)


# -- subsets whose columns differ ------------------------------------------------------------------

COLUMNS = {
    # By strings `b+b/` comes before `b/`, by paths after it.
    "b": {"rating": pa.int64(), "only_b": pa.string(), "about": pa.struct([("x", pa.int64())])},
    "b+b": {"rating": pa.null(), "tags": pa.list_(pa.int64())},
    "c": {
        "rating": pa.float64(), "tags": pa.list_(pa.float64()), "source": pa.large_string(),
        "about": pa.struct([("y", pa.string())]),
    },
}  # fmt: skip
VALUES = {
    "rating": {"b": 4, "c": 2.5}, "only_b": {"b": "yes"}, "tags": {"b+b": [1], "c": [1.5]},
    "source": {"c": "there"}, "about": {"b": {"x": 1, "y": None}, "c": {"x": None, "y": "z"}},
}  # fmt: skip


def differing(tmp_path, columns, rows=2):
    for name, types in columns.items():
        (tmp_path / "data" / name).mkdir(parents=True)
        fields = {"images": SCHEMA.field("images").type, "texts": SCHEMA.field("texts").type}
        schema = pa.schema({**fields, **types})
        body = {column: VALUES.get(column, {}).get(name) for column in types}
        texts = [{"user": "q", "assistant": "a"}]
        table = pa.Table.from_pylist([{"texts": texts, **body}] * rows, schema=schema)
        pq.write_table(table, tmp_path / "data" / name / "train-00000-of-00001.parquet")
    draw_samples(tmp_path / "data", tmp_path / "samples", {"fraction": 1.0}, seed=0)
    return tmp_path / "samples"


@pytest.mark.parametrize("streaming", [False, True])
@pytest.mark.parametrize("files", ["pattern", "paths"])
def test_subsets_whose_columns_differ_load_as_one(tmp_path, files, streaming):
    samples = differing(tmp_path, COLUMNS)
    assert json.loads((samples / "samples.json").read_text())["apart"] == {}
    paths = [str(path) for path in sorted(samples.glob("*/*.parquet"))]
    loaded = datasets.load_dataset(
        "parquet", data_files=str(samples / "*/*.parquet") if files == "pattern" else paths,
        split="train", streaming=streaming, cache_dir=str(tmp_path / "cache"),
    )  # fmt: skip
    found = {row["id"]: row for row in loaded}
    assert len(found) == 6
    for name, row in found.items():
        for column, values in VALUES.items():
            assert row[column] == values.get(name.split("/")[0]), (name, column)


def test_subsets_whose_columns_differ_are_one_table_for_arrow_too(tmp_path):
    paths = sorted(differing(tmp_path, COLUMNS).glob("*/*.parquet"))
    table = pyarrow.dataset.dataset([str(path) for path in paths]).to_table(
        columns=["id", "rating", "only_b"]
    )
    ratings = {row["id"].split("/")[0]: row["rating"] for row in table.to_pylist()}
    assert ratings == {"b": 4.0, "b+b": None, "c": 2.5}


def test_only_the_first_file_is_written_anew_and_keeps_its_rows(tmp_path, monkeypatch):
    import interlace.sampling.merge as merge

    written, rewrite = [], merge.rewrite
    monkeypatch.setattr(
        merge,
        "rewrite",
        lambda file, *rest: written.append(file.parent.name) or rewrite(file, *rest),
    )
    samples = differing(tmp_path, COLUMNS)
    assert sorted(written) == ["b", "b+b"]
    for name, types in COLUMNS.items():
        (path,) = (samples / name).glob("*.parquet")
        rows = pq.read_table(path).to_pylist()
        assert len(rows) == 2
        for column in set(types) - {"about"}:
            assert rows[0][column] == VALUES[column].get(name)
        size = json.loads((samples / "samples.json").read_text())["subsets"][name]["bytes_kept"]
        assert size == path.stat().st_size
    written.clear()
    make_tiny_finevision(tmp_path / "alike" / "data", rows=4)
    draw_samples(tmp_path / "alike" / "data", tmp_path / "alike" / "out", {"fraction": 1.0}, seed=0)
    assert not written


def test_a_subset_whose_columns_contradict_the_others_is_named_and_loads_by_itself(
    tmp_path, capsys
):
    columns = {name: {"rating": pa.int64()} for name in ("m", "n")} | {"a": {"rating": pa.string()}}
    samples = differing(tmp_path, columns)
    apart = json.loads((samples / "samples.json").read_text())["apart"]
    assert list(apart) == ["a"]
    assert "rating has incompatible types" in apart["a"]
    assert "a: to be loaded apart" in capsys.readouterr().err
    for group in (apart, columns.keys() - apart.keys()):
        files = [path for name in sorted(group) for path in (samples / name).glob("*.parquet")]
        assert len(load(files, tmp_path)) == 2 * len(group)
