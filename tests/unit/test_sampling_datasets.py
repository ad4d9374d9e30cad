"""The samples as a user of `datasets` sees them."""

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from interlace.data.chat import load_records
from interlace.sampling.run import draw_samples
from tests.tiny import SCHEMA, make_tiny_finevision

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
