"""The plan: what it costs before anything is fetched, and settings that decide a sample."""

import json
import shutil
from collections import namedtuple
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml

from interlace.config_docs import SCHEMA as CONFIG_SCHEMA
from interlace.errors import InputError
from interlace.grid import Grid
from interlace.sampling import domain
from interlace.sampling import plan as planning
from interlace.sampling import settings as settings_of
from interlace.sampling.plan import plan_samples, subset_names
from interlace.sampling.settings import complete, plan_settings, sample_settings, subset_settings
from tests.tiny import make_tiny_finevision
from tests.unit.sample_rows import row, write


def planned(source, out, said=None, **settings):
    said = [] if said is None else said
    plan_samples(source, out, settings, seed=0, say=said.append)
    return json.loads((out / "plan.json").read_text())


def test_rows_and_bytes_of_every_unit_are_said_and_written(tmp_path):
    write(tmp_path / "in" / "s", [row(user=f"{i}") for i in range(300)], 3, row_group_size=10)
    write(tmp_path / "in" / "t", [row(user=f"{i}") for i in range(40)], 1, row_group_size=10)
    said = []
    body = planned(tmp_path / "in", tmp_path / "plan", said, fraction=0.1)
    assert [entry["target"] for entry in body["subsets"].values()] == [30, 4]
    units = body["units"]
    assert {unit: cost["rows"] for unit, cost in units.items()} == dict.fromkeys(units, 34)
    assert units["row_group"]["row_groups"] == 4
    assert units["first"]["row_groups"] == 4
    assert units["row"]["row_groups"] > 15
    assert units["row_group"]["bytes"] < units["row"]["bytes"]
    for cost in units.values():
        assert 0 < cost["bytes_kept"] <= cost["bytes"]
    text = "\n".join(said)
    for part in ("2 subsets", "4 shards", "340 rows", "* row_group", "  row  ", "  first"):
        assert part in text
    assert body["provenance"]["num_samples"] == 34
    assert body["revision"] is None


def test_bytes_are_sums_over_the_files_own_footers(tmp_path):
    write(tmp_path / "in" / "s", [row(user=f"{i}") for i in range(30)], row_group_size=10)
    body = planned(tmp_path / "in", tmp_path / "plan", fraction=1.0)
    metadata = pq.read_metadata(next((tmp_path / "in" / "s").glob("*")))
    groups = [metadata.row_group(i) for i in range(3)]
    total = sum(g.column(i).total_compressed_size for g in groups for i in range(g.num_columns))
    for cost in body["units"].values():
        assert cost["bytes_kept"] == total
        # A folder may change, so that its footers are compared when its row groups are read.
        assert cost["bytes"] == total + metadata.serialized_size + 8


def test_a_disk_that_is_too_small_is_said_before_the_download(tmp_path, monkeypatch):
    make_tiny_finevision(tmp_path / "in")
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage(10**6, 0, 1000))
    with pytest.raises(InputError, match=r"kB.*1\.0 kB are free.*data\.fraction"):
        planned(tmp_path / "in", tmp_path / "plan", fraction=1.0)
    assert not (tmp_path / "plan").exists()


def test_the_disk_is_asked_for_what_the_spool_unpacks_to(tmp_path, monkeypatch):
    zeros = row(user="q") | {"images": [{"bytes": bytes(2_000_000), "path": "a"}]}
    write(tmp_path / "in" / "s", [zeros] * 4, row_group_size=2)
    packed = sum(path.stat().st_size for path in (tmp_path / "in" / "s").iterdir())
    assert packed < 1_000_000
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage(10**9, 0, 3_000_000))
    for unit in ("row_group", "row", "first"):
        with pytest.raises(InputError, match=r"3\.0 MB are free"):
            planned(tmp_path / "in", tmp_path / "plan", fraction=1.0, unit=unit)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage(10**9, 0, 20_000_000))
    body = planned(tmp_path / "in", tmp_path / "plan", fraction=1.0)
    assert body["units"]["row_group"]["bytes_unpacked"] > 8_000_000


def test_row_groups_that_are_too_large_are_counted_before_the_download(tmp_path, monkeypatch):
    write(tmp_path / "in" / "s", [row(user=f"{i}") for i in range(20)], row_group_size=5)
    monkeypatch.setattr(planning, "MOST_UNPACKED", 10)
    said = []
    body = planned(tmp_path / "in", tmp_path / "plan", said, fraction=0.5)
    assert body["subsets"]["s"]["too_large"] == 4
    assert any("s: 4 of its 4 row groups announce more than 10 B" in line for line in said)


def test_a_subset_without_a_usable_row_is_a_row_of_its_own(tmp_path):
    write(tmp_path / "in" / "good", [row()] * 4)
    (tmp_path / "in" / "bad").mkdir()
    pq.write_table(pa.table({"images": pa.nulls(1)}), tmp_path / "in" / "bad" / "0.parquet")
    write(tmp_path / "in" / "none", [])
    said = []
    body = planned(tmp_path / "in", tmp_path / "plan", said, fraction=0.5)
    assert list(body["subsets"]) == ["bad", "good", "none"]
    assert subset_names(tmp_path / "plan" / "plan.json") == ["good"]
    assert "no column `texts`" in body["subsets"]["bad"]["refused"]["0.parquet"]
    assert body["subsets"]["none"]["refused"] == {}
    assert any("bad/0.parquet: left out: no column" in line for line in said)
    assert any(line.startswith("none: none of its") for line in said)


def test_no_usable_subset_at_all_is_an_error(tmp_path):
    write(tmp_path / "in" / "s", [])
    with pytest.raises(InputError, match="all its shards are empty"):
        planned(tmp_path / "in", tmp_path / "plan")
    write(tmp_path / "in" / "t", [row()] * 4)
    with pytest.raises(InputError, match=r"no row would be drawn.*data\.min_per_subset"):
        planned(tmp_path / "in", tmp_path / "plan", fraction=0.1, min_per_subset=0)


def test_rules_find_the_subsets_of_a_plan(tmp_path):
    make_tiny_finevision(tmp_path / "in")
    planned(tmp_path / "in", tmp_path / "plan", fraction=0.5, subsets=["text_tiny", "tiny_vqa"])
    grid = Grid({"run": "r", "models": {}, "data": {}})
    folders = grid.subset_folders(str(tmp_path / "plan" / "plan.json"))
    assert folders == [f"results/r/sampling/subsets/{n}" for n in ("text_tiny", "tiny_vqa")]


def test_sources_of_the_configuration():
    def source(**data):
        data = {"revision": None} | data
        grid = Grid({"run": "r", "models": {}, "data": data})
        return grid.sample_folder(), grid.sample_source()

    assert source(source="demo", path=None) == (
        ["results/r/demo/finevision"],
        "results/r/demo/finevision",
    )
    assert source(source="local", path="a/b") == (["a/b"], "a/b")
    assert source(source="hub", path="o/n") == ([], "hf://datasets/o/n")
    assert source(source="hub", path="o/n", revision="v1") == ([], "hf://datasets/o/n@v1")
    assert source(source="address", path="s3://b/c") == ([], "s3://b/c")


def test_defaults_are_those_of_the_configuration():
    schema = yaml.safe_load(Path(CONFIG_SCHEMA).read_text())["properties"]["data"]["properties"]
    known = settings_of.DEFAULTS | settings_of.MANNER
    assert known == {key: schema[key]["default"] for key in known}
    assert set(schema) - set(known) == {"source", "path", "revision"}
    assert schema["format"]["enum"] == list(settings_of.FORMATS) == ["finevision", *domain.COLUMNS]
    assert schema["unit"]["enum"] == list(settings_of.UNITS)
    assert schema["long_conversations"]["enum"] == list(settings_of.LONG_CONVERSATIONS)


def test_a_change_fetches_again_only_what_it_changes():
    base = complete({})
    for key, plan, subset, sample in (
        ("workers", False, False, False),
        ("retries", False, False, False),
        ("calibration_fraction", False, False, True),
        ("calibration_held_out", False, False, True),
        ("max_turns", True, True, True),
        ("subsets", True, False, True),
        ("fraction", True, True, True),
        ("unit", True, True, True),
    ):
        other = base | {key: "changed"}
        assert (plan_settings(other) != plan_settings(base)) is plan, key
        assert (subset_settings(other) != subset_settings(base)) is subset, key
        assert (sample_settings(other) != sample_settings(base)) is sample, key


@pytest.mark.parametrize(
    ("settings", "match"),
    [
        ({"fraction": 0}, r"data\.fraction: 0"),
        ({"calibration_fraction": 1.5}, r"data\.calibration_fraction: 1\.5"),
        ({"min_per_subset": -1}, r"data\.min_per_subset: -1"),
        ({"workers": 0}, r"data\.workers: 0"),
        ({"unit": "rows"}, r"data\.unit: rows is none of row, row_group, first"),
        ({"format": "json"}, r"data\.format: json"),
    ],
)
def test_settings_out_of_bounds_are_named(settings, match):
    with pytest.raises(InputError, match=match):
        complete(settings)
