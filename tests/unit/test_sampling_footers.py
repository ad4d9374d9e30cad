"""Planning reads footers only, each once, and names the shards that are of no use."""

import shutil
import threading

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from interlace.errors import InputError
from interlace.sampling import footers
from interlace.sampling.footers import fetch_footer, read_footers
from interlace.sampling.ranges import RangeReader, fingerprint
from interlace.sampling.source import list_shards, open_source
from tests.flaky import FlakyFileSystem, serve, spoiling
from tests.tiny import SCHEMA, make_tiny_finevision
from tests.unit.shards import IMAGES, SETTINGS, TEXTS, footer_of, read, shard


def test_rows_groups_and_byte_ranges_are_those_of_the_files(tmp_path):
    root = make_tiny_finevision(tmp_path / "in", rows=7)
    found, _ = read(root, tmp_path / "cache")
    for name, subset in found.items():
        groups = subset.groups
        assert subset.num_rows == 7
        assert subset.schema.names == SCHEMA.names
        for i in range(len(groups["rows"])):
            path = root / name / groups["shard"][i]
            metadata = pq.read_metadata(path)
            group = metadata.row_group(int(groups["row_group"][i]))
            assert groups["rows"][i] == group.num_rows
            columns = [group.column(c) for c in range(group.num_columns)]
            assert groups["length"][i] == sum(c.total_compressed_size for c in columns)
            assert groups["size"][i] == path.stat().st_size
            assert groups["footer"][i] == metadata.serialized_size + 8


def test_a_footer_is_one_request_and_no_row_is_read(tmp_path):
    rng = np.random.default_rng(0)
    for i in range(5):
        table = pa.table({"images": pa.nulls(200, IMAGES), "texts": pa.nulls(200, TEXTS),
                          "noise": [rng.bytes(2000) for _ in range(200)]})  # fmt: skip
        (tmp_path / "in" / "s").mkdir(parents=True, exist_ok=True)
        pq.write_table(table, tmp_path / "in" / "s" / f"{i}.parquet", row_group_size=50)
    found, reader = read(serve(tmp_path / "in"), tmp_path / "cache")
    assert found["s"].num_rows == 1000
    assert reader.requests == 5
    for path, start, end in FlakyFileSystem.log:
        size = len(FlakyFileSystem.store[path].getvalue())
        assert end == size
        assert start > size - 60_000 > 300_000


def test_a_longer_footer_takes_a_second_request_and_the_next_is_guessed(tmp_path):
    wide = {f"column_{i:04d}": pa.int64() for i in range(1500)}
    for i in range(4):
        shard(tmp_path / "in", str(i), {"images": IMAGES, "texts": TEXTS} | wide)
    settings = SETTINGS | {"workers": 1}
    found, reader = read(serve(tmp_path / "in"), tmp_path / "cache", settings)
    assert found["s"].num_rows == 16
    assert reader.requests == 5
    first, second = FlakyFileSystem.log[:2]
    assert second[2] == first[1]  # what is missing is asked for, nothing twice


def test_what_is_known_is_not_asked_for_again(tmp_path):
    root = make_tiny_finevision(tmp_path / "in")
    address = serve(root)
    first, _ = read(address, tmp_path / "cache")
    second, reader = read(address, tmp_path / "cache")
    assert reader.requests == 0
    for name in first:
        assert first[name].table.equals(second[name].table)
        assert first[name].schema == second[name].schema


def test_a_reading_that_ended_goes_on_with_the_shard_it_was_at(tmp_path):
    root = make_tiny_finevision(tmp_path / "in")
    address = serve(root)
    names = sorted(p.name for p in root.iterdir())

    def broken(path, start, data):
        if f"/{names[2]}/" in path:
            raise KeyboardInterrupt
        return data

    FlakyFileSystem.fault = broken
    with pytest.raises(KeyboardInterrupt):
        read(address, tmp_path / "cache", SETTINGS | {"workers": 1})
    FlakyFileSystem.fault = None
    FlakyFileSystem.log.clear()
    (tmp_path / "cache" / f"{names[1]}.parquet").write_bytes(b"PAR1 torn")
    found, _ = read(address, tmp_path / "cache")
    assert set(found) == set(names)
    again = {path.split("/")[-2] for path, *_ in FlakyFileSystem.log}
    # Its thread may have read the next one before the reading ended.
    assert {names[2]} <= again <= set(names[2:])


def test_a_shard_of_another_size_is_read_again(tmp_path):
    shard(tmp_path / "in", "a", {"images": IMAGES, "texts": TEXTS})
    read(tmp_path / "in", tmp_path / "cache")
    shard(tmp_path / "in", "a", {"images": IMAGES, "texts": TEXTS, "new": pa.int8()}, rows=9)
    found, reader = read(tmp_path / "in", tmp_path / "cache")
    assert reader.requests == 1
    assert found["s"].num_rows == 9


def test_schemas_that_drift_are_widened_and_missing_columns_null(tmp_path):
    base = {"images": IMAGES, "texts": TEXTS}
    shard(tmp_path / "in", "a", base | {"score": pa.int32()})
    shard(tmp_path / "in", "b", {"texts": TEXTS, "images": pa.null(), "score": pa.int64()})
    shard(tmp_path / "in", "c", base | {"extra": pa.string()})
    found, _ = read(tmp_path / "in", tmp_path / "cache")
    assert found["s"].refused == {}
    assert found["s"].num_rows == 12
    schema = found["s"].schema
    assert set(schema.names) == {"images", "texts", "score", "extra"}
    assert schema.field("score").type == pa.int64()
    assert schema.field("images").type == IMAGES


def test_shards_of_no_use_are_named_and_the_rest_goes_on(tmp_path):
    base = {"images": IMAGES, "texts": TEXTS}
    folder = tmp_path / "in"
    shard(folder, "good", base | {"score": pa.int64()}, rows=5)
    shard(folder, "lacks", {"images": IMAGES, "text": TEXTS})
    shard(folder, "wrong", {"images": pa.int64(), "texts": TEXTS})
    shard(folder, "against", base | {"score": pa.list_(pa.int64())})
    shard(folder, "binary", {"images": IMAGES, "texts": pa.list_(
        pa.struct([("user", pa.binary()), ("assistant", pa.binary())]))})  # fmt: skip
    torn = shard(folder, "torn", base)
    torn.write_bytes(torn.read_bytes()[:-30])
    (folder / "s" / "empty.parquet").write_bytes(b"")
    found, _ = read(folder, tmp_path / "cache")
    why = {name.removesuffix(".parquet"): text for name, text in found["s"].refused.items()}
    assert set(why) == {"lacks", "wrong", "against", "binary", "torn", "empty"}
    assert "no column `texts`" in why["lacks"]
    assert "column `images` is int64" in why["wrong"]
    assert "contradict" in why["against"]
    assert found["s"].refused_rows == 16  # of the four whose footers can be read
    assert "contradict" in why["binary"]
    assert "not Parquet" in why["torn"]
    assert all("\n" not in text for text in why.values())
    assert found["s"].num_rows == 5
    assert found["s"].num_shards == 7


def test_a_footer_of_no_sane_length_is_not_fetched(tmp_path, monkeypatch):
    columns = {"images": IMAGES, "texts": TEXTS}
    path = shard(tmp_path / "in", "long", columns, rows=400)
    shard(tmp_path / "in", "good", columns)
    path.write_bytes(
        bytes(40_000) + path.read_bytes()[:-8] + (30_000).to_bytes(4, "little") + b"PAR1"
    )
    monkeypatch.setattr(footers, "MOST_FOOTER", 20_000)
    monkeypatch.setattr(footers, "FIRST_GUESS", 10_000)
    found, _ = read(serve(tmp_path / "in"), tmp_path / "cache")
    assert found["s"].refused == {
        "long.parquet": "announces a footer of 30008 bytes; at most 20000 are read"
    }
    assert found["s"].num_rows == 4
    assert max(end - start for _, start, end in FlakyFileSystem.log) <= 10_000


def test_an_odd_shard_does_not_outvote_the_others(tmp_path):
    base = {"images": IMAGES, "texts": TEXTS}
    shard(tmp_path / "in", "a", base | {"score": pa.string()}, rows=2)
    for name in "bc":
        shard(tmp_path / "in", name, base | {"score": pa.int64()}, rows=9)
    found, _ = read(tmp_path / "in", tmp_path / "cache")
    assert list(found["s"].refused) == ["a.parquet"]
    assert found["s"].num_rows == 18


def test_empty_shards_and_empty_row_groups_are_fine(tmp_path):
    columns = {"images": IMAGES, "texts": TEXTS}
    shard(tmp_path / "in", "a", columns, rows=0)
    with pq.ParquetWriter(tmp_path / "in" / "s" / "b.parquet", SCHEMA) as writer:
        writer.write_table(SCHEMA.empty_table())
        writer.write_table(pa.Table.from_pylist([{}] * 2, schema=SCHEMA))
        writer.write_table(SCHEMA.empty_table())
    shard(tmp_path / "in", "c", columns, rows=3)
    shard(tmp_path / "in", "x", columns, rows=0, subset="none")
    found, _ = read(tmp_path / "in", tmp_path / "cache")
    assert found["s"].refused == {}
    assert found["s"].groups["rows"].tolist() == [2, 3]
    assert found["s"].num_shards == 3
    assert (found["none"].num_rows, found["none"].refused) == (0, {})
    assert len(found["none"].schema) == 0


def test_a_shard_that_cannot_be_fetched_stops_the_planning(tmp_path):
    address = serve(make_tiny_finevision(tmp_path / "in"))

    def gone(path, start, data):
        raise TimeoutError("stalled")

    FlakyFileSystem.fault = gone
    with pytest.raises(InputError, match=r"1 attempt failed.*stalled"):
        read(address, tmp_path / "cache")


def test_an_interrupt_does_not_wait_for_what_waits_to_try_again(tmp_path, monkeypatch):
    for name in "ab":
        shard(tmp_path / "in", name, {"images": IMAGES, "texts": TEXTS})
    address = serve(tmp_path / "in")
    monkeypatch.setattr("interlace.sampling.ranges.FIRST_WAIT_S", 30)
    failed, tries = threading.Event(), []

    def fault(path, start, data):
        if path.endswith("a.parquet"):
            failed.wait(20)
            raise KeyboardInterrupt
        tries.append(path)
        failed.set()
        raise ConnectionResetError("reset")

    FlakyFileSystem.fault = fault
    source = open_source(address)
    with pytest.raises(KeyboardInterrupt):
        read_footers(
            source, list_shards(source)[0], SETTINGS | {"workers": 2},
            RangeReader(source.filesystem, retries=1), tmp_path / "cache",
        )  # fmt: skip
    assert len(tries) == 1


def test_a_footer_spoiled_on_its_way_is_read_once_more(tmp_path):
    columns = {"images": IMAGES, "texts": TEXTS}
    for name in "abc":
        shard(tmp_path / "in", name, columns)
    address = serve(tmp_path / "in")
    FlakyFileSystem.fault = spoiling(1, lambda data: -1)
    found, reader = read(address, tmp_path / "cache")
    assert found["s"].refused == {}
    assert reader.requests == 6
    FlakyFileSystem.fault = spoiling(1, lambda data: data.index(b"texts"))  # still a whole footer
    found, _ = read(address, tmp_path / "other")
    assert found["s"].refused == {}
    FlakyFileSystem.fault = None
    for cache in ("cache", "other"):
        again, reader = read(address, tmp_path / cache)
        assert reader.requests == 0
        assert again["s"].table.equals(found["s"].table)


def patiently(address, cache, retries):
    source = open_source(address)
    reader = RangeReader(source.filesystem, retries)
    return read_footers(source, list_shards(source)[0], SETTINGS, reader, cache), reader


BROKEN, CONTRARY = (lambda data: -1), (lambda data: data.index(b"texts"))  # the latter is whole


@pytest.mark.parametrize("place", [BROKEN, CONTRARY])
def test_a_footer_is_asked_for_until_it_is_right_or_patience_ends(tmp_path, monkeypatch, place):
    monkeypatch.setattr("interlace.sampling.ranges.FIRST_WAIT_S", 0.001)
    for name in "abc":
        shard(tmp_path / "in", name, {"images": IMAGES, "texts": TEXTS})
    address, of = serve(tmp_path / "in"), lambda path, start: path.endswith("b.parquet")
    FlakyFileSystem.fault = spoiling(2, place, of)
    (found,), reader = patiently(address, tmp_path / "cache", 2)
    assert found.refused == {}
    # One that is whole must be known to be right: twice the same.
    assert (reader.requests, reader.failed) == ((5, 2) if place is BROKEN else (6, 2))
    FlakyFileSystem.fault = spoiling(99, place, of)
    with pytest.raises(InputError, match=r"b\.parquet: footer: \d answers of the right length"):
        patiently(address, tmp_path / "other", 2)
    assert not (tmp_path / "other" / "s.parquet").exists()


@pytest.mark.parametrize("place", [lambda data: -1, lambda data: data.index(b"texts")])
def test_a_refusal_is_never_kept(tmp_path, place):
    for name in "abc":
        shard(tmp_path / "in", name, {"images": IMAGES, "texts": TEXTS})
    address = serve(tmp_path / "in")

    def spoiled(path, start, data):
        if not path.endswith("b.parquet"):
            return data
        return data[: place(data)] + b"?" + data[place(data) :][1:]

    FlakyFileSystem.fault = spoiled
    found, _ = read(address, tmp_path / "cache")
    assert list(found["s"].refused) == ["b.parquet"]
    FlakyFileSystem.fault = None
    found, _ = read(address, tmp_path / "cache")
    assert found["s"].refused == {}
    assert found["s"].num_rows == 12


def test_a_footer_is_known_from_when_it_came_whatever_became_of_the_process(tmp_path):
    for i in range(10):
        shard(tmp_path / "in", f"{i}", {"images": IMAGES, "texts": TEXTS})
    address, cache, killed = serve(tmp_path / "in"), tmp_path / "cache", tmp_path / "killed"
    one = SETTINGS | {"workers": 1}

    def kill(path, start, data):
        if path.endswith("7.parquet"):
            shutil.copytree(cache, killed)  # as a process that is killed now leaves it
        return data

    FlakyFileSystem.fault = kill
    whole, _ = read(address, cache, one)
    FlakyFileSystem.fault = None
    assert [path.name for path in cache.iterdir()] == ["s.parquet"]
    journal = killed / ".journal"
    kept = journal.read_bytes()
    for torn, asked in ((b"", 3), (b'{"shard":["s","7.parq', 3), (b"\n7\n[]\n\xff\n", 3)):
        journal.write_bytes(kept + torn)
        shutil.copytree(killed, tmp_path / "next", dirs_exist_ok=True)
        found, reader = read(address, tmp_path / "next", one)
        assert reader.requests == asked
        assert found["s"].table.equals(whole["s"].table)
        assert found["s"].schemas == whole["s"].schemas
        assert read(address, tmp_path / "next")[1].requests == 0
        shutil.rmtree(tmp_path / "next")
    journal.write_bytes(kept[: len(kept) // 2])
    shutil.copytree(killed, tmp_path / "half")
    assert 3 < read(address, tmp_path / "half", one)[1].requests < 10


def test_what_is_noted_of_a_shard_of_another_size_is_not_used(tmp_path):
    for name in "ab":
        shard(tmp_path / "in", name, {"images": IMAGES, "texts": TEXTS})
    address = serve(tmp_path / "in")

    def end(path, start, data):
        if path.endswith("b.parquet"):
            raise KeyboardInterrupt
        return data

    FlakyFileSystem.fault = end
    with pytest.raises(KeyboardInterrupt):
        read(address, tmp_path / "cache", SETTINGS | {"workers": 1})
    shard(tmp_path / "in", "a", {"images": IMAGES, "texts": TEXTS, "new": pa.int8()}, rows=9)
    found, reader = read(serve(tmp_path / "in"), tmp_path / "cache")
    assert reader.requests == 2
    assert found["s"].num_rows == 13


def test_what_changed_is_forgotten_with_what_is_noted(tmp_path):
    for name in ("s.parquet", ".journal"):
        (tmp_path / name).write_text("x")
    footers.forget(tmp_path, "s")
    assert list(tmp_path.iterdir()) == []


def test_the_footer_planned_with_is_known_again(tmp_path):
    path = shard(tmp_path / "in", "a", {"images": IMAGES, "texts": TEXTS})
    address, footer, size = serve(tmp_path / "in"), footer_of(path), path.stat().st_size
    found, _ = read(address, tmp_path / "cache")
    digest = found["s"].groups["digest"][0]
    assert digest == fingerprint(footer)
    source = open_source(address)
    place = source.path("s", "a.parquet")
    FlakyFileSystem.fault = spoiling(1, lambda data: len(data) // 2)
    reader = RangeReader(source.filesystem, retries=0)
    assert fetch_footer(reader, place, size, len(footer), digest) == footer
    assert reader.requests == 2
    assert fetch_footer(reader, place, size, len(footer), "another") is None
    assert reader.requests == 4
    FlakyFileSystem.fault = spoiling(99, lambda data: 9)
    with pytest.raises(InputError, match="2 answers of the right length"):
        fetch_footer(reader, place, size, len(footer), digest)
