"""Sampling: exact counts, uniform rows, everything that is left out counted and named."""

import json
import subprocess
import sys

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from interlace.data.chat import load_records
from interlace.errors import InputError
from interlace.io import folder_digest
from tests.tiny import SCHEMA, make_tiny_finevision, make_tiny_samples
from tests.unit.sample_rows import draw_samples, manifest, png, row, write

SETTINGS = {
    "fraction": 0.5,
    "min_per_subset": 1,
    "max_images": 3,
    "max_turns": 5,
    "calibration_fraction": 0.25,
    "unit": "row",
}


def counts(out, subset):
    return json.loads((out / "samples.json").read_text())["subsets"][subset]


def test_every_subset_gets_its_share_and_comes_back_as_records(tmp_path):
    make_tiny_finevision(tmp_path / "in", rows=7)
    draw_samples(tmp_path / "in", tmp_path / "out", SETTINGS, seed=3)
    rows = manifest(tmp_path / "out")
    assert {(r["subset"], r["status"]) for r in rows} == {
        (name, "kept") for name in ("tiny_vqa", "text_tiny", "tiny_pairs(a+b)", "tiny_turns")
    }
    assert len(rows) == 4 * 3  # floor(0.5 * 7)
    records = list(load_records(tmp_path / "out"))
    assert {r.id for r in records} == {r["id"] for r in rows}
    by_id = {r["id"]: r for r in rows}
    for record in records:
        entry = by_id[record.id]
        assert record.subset == entry["subset"]
        assert [list(image.size) for image in record.images] == entry["image_sizes"]
        assert all(image.mode == "RGB" for image in record.images)
        assert len(record.turns) == entry["num_turns"]
        length = sum(len(t["user"]) + len(t["assistant"]) for t in record.turns)
        assert length == entry["num_chars"]
    shapes = {r.subset: (len(r.images), len(r.turns)) for r in records}
    assert shapes == {
        "tiny_vqa": (1, 1), "text_tiny": (0, 1), "tiny_pairs(a+b)": (2, 1), "tiny_turns": (1, 3),
    }  # fmt: skip


def test_manifest_names_the_row_each_sample_came_from(tmp_path):
    rows = [row(user=f"question {i}") for i in range(20)]
    write(tmp_path / "in" / "s", rows, shards=3)
    draw_samples(tmp_path / "in", tmp_path / "out", SETTINGS, seed=0)
    records = {r.id: r for r in load_records(tmp_path / "out")}
    assert len(records) == 10
    for entry in manifest(tmp_path / "out"):
        file = pq.ParquetFile(tmp_path / "in" / "s" / entry["shard"])
        source = file.read_row_group(entry["row_group"]).slice(entry["row"], 1).to_pylist()[0]
        assert records[entry["id"]].turns == source["texts"]
    written = pq.read_table(next((tmp_path / "out" / "s").glob("*.parquet")))
    assert written.schema.names == [*SCHEMA.names, "source_id", "id"]


def test_same_seed_same_bytes_other_seed_other_rows(tmp_path):
    write(tmp_path / "in" / "s", [row(user=f"{i}") for i in range(40)], shards=4)
    for name, seed in (("a", 1), ("b", 1), ("c", 2)):
        draw_samples(tmp_path / "in", tmp_path / name, SETTINGS, seed)
    assert folder_digest(tmp_path / "a") == folder_digest(tmp_path / "b")
    ids = [{r["id"] for r in manifest(tmp_path / name)} for name in "ac"]
    assert ids[0] != ids[1]


def test_a_subset_is_drawn_the_same_whatever_stands_beside_it(tmp_path):
    for name in ("in1", "in2"):
        write(tmp_path / name / "s", [row(user=f"{i}") for i in range(30)])
    write(tmp_path / "in2" / "a", [row()] * 4)
    draw_samples(tmp_path / "in1", tmp_path / "o1", SETTINGS, 0)
    draw_samples(tmp_path / "in2", tmp_path / "o2", SETTINGS, 0)
    of_s = [[r["id"] for r in manifest(tmp_path / o) if r["subset"] == "s"] for o in ("o1", "o2")]
    assert of_s[0] == of_s[1]


def test_rejected_rows_are_replaced_counted_and_named(tmp_path):
    rows = [row(user=f"{i}") for i in range(20)]
    rows[::4] = [
        row(images=4),
        row(turns=6),
        row(assistant=" "),
        row(data=b"no image"),
        row(data=png()[:40]),
    ]
    write(tmp_path / "in" / "s", rows)
    draw_samples(tmp_path / "in", tmp_path / "out", SETTINGS | {"fraction": 0.75}, seed=0)
    count = counts(tmp_path / "out", "s")
    assert (count["rows"], count["target"], count["kept"], count["short"]) == (20, 15, 15, 0)
    drawn = manifest(tmp_path / "out")
    assert [r["draw"] for r in drawn] == list(range(count["drawn"]))
    assert drawn[-1]["status"] == "kept", "nothing is drawn once the count is met"
    named = {r["row_group"] * 3 + r["row"]: r["reason"] for r in drawn if r["reason"]}
    expected = ["too_many_images", "too_many_turns", "unusable_text", *["undecodable_image"] * 2]
    truth = dict(zip(range(0, 20, 4), expected, strict=True))
    assert named
    assert named.items() <= truth.items()
    assert sum(count["rejected"].values()) == count["drawn"] - 15 == len(named)
    bad = next(r for r in drawn if r["reason"] == "undecodable_image")
    assert bad["detail"].startswith("image 0: ")


def test_an_exhausted_subset_is_reported_as_short(tmp_path, capsys):
    write(tmp_path / "in" / "s", [row(), row(turns=9), row(images=5), row()])
    draw_samples(tmp_path / "in", tmp_path / "out", SETTINGS | {"fraction": 1.0}, seed=0)
    count = counts(tmp_path / "out", "s")
    assert (count["target"], count["drawn"], count["kept"], count["short"]) == (4, 4, 2, 2)
    assert "s: 2 of 4 samples" in capsys.readouterr().err


@pytest.mark.parametrize("text", [None, [], [None], [{"user": None, "assistant": "a"}]])
def test_null_and_empty_texts_are_rejected(tmp_path, text):
    write(tmp_path / "in" / "s", [row(), row() | {"texts": text}])
    draw_samples(tmp_path / "in", tmp_path / "out", SETTINGS | {"fraction": 1.0}, seed=0)
    assert counts(tmp_path / "out", "s")["rejected"]["unusable_text"] == 1


@pytest.mark.parametrize("image", [None, {"bytes": None, "path": "x.png"}, {"bytes": b""}])
def test_null_and_empty_images_are_rejected(tmp_path, image):
    write(tmp_path / "in" / "s", [row(), row() | {"images": [image]}])
    draw_samples(tmp_path / "in", tmp_path / "out", SETTINGS | {"fraction": 1.0}, seed=0)
    assert counts(tmp_path / "out", "s")["rejected"]["missing_image"] == 1


def test_a_decompression_bomb_is_refused_before_it_is_unpacked(tmp_path, monkeypatch):
    monkeypatch.setattr("interlace.data.images.MAX_PIXELS", 100)
    rows = [row(data=png((9, 9))), row(data=png((11, 11))), row(data=png((40, 40)))]
    write(tmp_path / "in" / "s", rows)
    draw_samples(tmp_path / "in", tmp_path / "out", SETTINGS | {"fraction": 1.0}, seed=0)
    bad = [r for r in manifest(tmp_path / "out") if r["status"] == "rejected"]
    assert [r["reason"] for r in bad] == ["too_many_pixels"] * 2


def test_calibration_is_stratified_and_of_the_stated_size(tmp_path):
    for name, rows in (("big", 40), ("mid", 10), ("one", 1)):
        write(tmp_path / "in" / name, [row(user=f"{i}") for i in range(rows)])
    settings = SETTINGS | {"fraction": 1.0, "calibration_fraction": 0.1}
    draw_samples(tmp_path / "in", tmp_path / "out", settings, seed=0)
    marked = [r for r in manifest(tmp_path / "out") if r["calibration"]]
    of = {name: sum(r["subset"] == name for r in marked) for name in ("big", "mid", "one")}
    assert of == {"big": 4, "mid": 1, "one": 0}  # round(5.1) = 5
    records = load_records(tmp_path / "out", calibration_only=True)
    assert sorted(records.ids) == sorted(r["id"] for r in marked)
    assert counts(tmp_path / "out", "big")["calibration"] == 4


def test_shards_that_lack_optional_columns_or_have_nulls_throughout_are_read_as_one(tmp_path):
    texts = [{"texts": row(user="x")["texts"], "images": None}] * 4
    (tmp_path / "in" / "s").mkdir(parents=True)
    pq.write_table(pa.Table.from_pylist(texts), tmp_path / "in" / "s" / "a.parquet")
    write(tmp_path / "in" / "s" / "whole", [row(user=f"{i}") for i in range(4)])
    whole = next((tmp_path / "in" / "s" / "whole").glob("*.parquet"))
    whole.rename(tmp_path / "in" / "s" / "b.parquet")
    draw_samples(tmp_path / "in", tmp_path / "out", SETTINGS | {"fraction": 1.0}, seed=0)
    assert sorted(len(r.images) for r in load_records(tmp_path / "out")) == [0] * 4 + [1] * 4


def test_wrong_folders_and_files_are_one_line_that_names_them(tmp_path):
    def refused(match):
        with pytest.raises(InputError, match=match) as caught:
            draw_samples(tmp_path / "in", tmp_path / "out", SETTINGS, seed=0)
        assert "\n" not in str(caught.value)
        assert not (tmp_path / "out").exists()

    refused("in: no such folder")
    (tmp_path / "in").mkdir()
    refused("in: no <subset>")
    (tmp_path / "in" / "s").mkdir()
    refused("in: no <subset>")
    file = tmp_path / "in" / "s" / "a.parquet"
    pq.write_table(pa.table({"images": pa.nulls(1), "text": [2]}), file)
    refused(r"a\.parquet: no column `texts`")
    pq.write_table(pa.table({"images": [1], "texts": ["a"]}), file)
    refused(r"a\.parquet: column `images` is int64")
    write(tmp_path / "other", [row()] * 3)
    whole = next((tmp_path / "other").glob("*.parquet")).read_bytes()
    file.write_bytes(whole[:-50])
    refused(r"a\.parquet: truncated or not Parquet")
    file.write_bytes(b"")
    refused(r"a\.parquet: truncated or not Parquet")
    file.unlink()
    write(tmp_path / "in" / "t", [row(turns=9)])
    refused("no row was kept.*1 too_many_turns")


def test_samples_that_lack_a_part_are_refused_by_name(tmp_path):
    out = make_tiny_samples(tmp_path / "out", rows=3)
    manifest, torn = out / "manifest.parquet", out / "tiny_vqa" / "train-00000-of-00002.parquet"
    entries = [entry | {"finetune": True} for entry in pq.read_table(manifest).to_pylist()]
    pq.write_table(pa.Table.from_pylist(entries), manifest)
    whole = torn.read_bytes()
    metadata = pq.read_metadata(torn)
    records = load_records(out)
    start, end = (metadata.row_group(0).column(i).data_page_offset for i in (0, 2))
    torn.write_bytes(whole[:start] + b"\xff" * (end - start) + whole[end:])
    with pytest.raises(InputError, match=rf"{torn}: row group 0 is not readable.*draw again"):
        list(records)
    torn.unlink()
    with pytest.raises(InputError, match=r"sample tiny_vqa/.* of the manifest is missing"):
        load_records(out)
    for file in out.glob("*/*.parquet"):
        file.unlink()
    with pytest.raises(InputError, match="holds no samples"):
        load_records(out)
    manifest.unlink()
    with pytest.raises(InputError, match=r"manifest\.parquet: no such file"):
        load_records(out)


def test_sampling_and_reading_need_no_torch():
    code = (
        "import sys, interlace.sampling.run, interlace.data.chat; sys.exit('torch' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0


def test_a_remote_folder_is_read_like_a_local_one(tmp_path):
    """Any fsspec address: here memory, on a hub `hf://datasets/<id>@<revision>`."""
    import fsspec

    local = make_tiny_finevision(tmp_path / "data")
    memory = fsspec.filesystem("memory")
    memory.put(str(local), "/remote", recursive=True)
    settings = SETTINGS | {"fraction": 0.5}
    draw_samples(tmp_path / "data", tmp_path / "a", settings, seed=5)
    draw_samples("memory://remote", tmp_path / "b", settings, seed=5)
    tables = [pq.read_table(tmp_path / side / "manifest.parquet") for side in "ab"]
    assert tables[0].num_rows > 0
    assert tables[0].equals(tables[1])
    with pytest.raises(InputError, match="no such folder"):
        draw_samples("memory://absent", tmp_path / "c", settings, seed=5)
