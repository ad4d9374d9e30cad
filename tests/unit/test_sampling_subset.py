"""One subset under hostile conditions: the same files, nothing fetched twice, nothing torn kept."""

import errno
import json
import os
import threading
import time

import numpy as np
import pyarrow.parquet as pq
import pytest

from interlace.errors import InputError
from interlace.io import claimed, folder_digest
from interlace.sampling.decoding import decode_group
from interlace.sampling.fetch import Fetcher
from interlace.sampling.index import load_index
from interlace.sampling.plan import plan_samples
from interlace.sampling.subset import draw_subset
from tests.flaky import FlakyFileSystem, serve, spoiling
from tests.unit.sample_rows import png, row, write

UNITS = ("row", "row_group", "first")


class Killed(BaseException):
    """Ends everything, as a signal would."""


def rows_with_excess(count, every=4):
    return [row(user=f"q{i}", images=4 if i % every == 0 else 1) for i in range(count)]


@pytest.fixture(autouse=True)
def short_waits(monkeypatch):
    monkeypatch.setattr("interlace.sampling.ranges.FIRST_WAIT_S", 0.001)


@pytest.fixture
def place(tmp_path):
    """A subset of 200 rows in five shards, a quarter of them over the limits; its address."""
    write(tmp_path / "in" / "s+(x)", rows_with_excess(200), shards=5, row_group_size=8)
    return tmp_path, serve(tmp_path / "in")


def plan(place, **settings):
    folder, address = place
    settings = {"fraction": 0.2, "retries": 2, "workers": 1} | settings
    plan_samples(address, folder / "plan", settings, seed=3, say=lambda text: None)
    FlakyFileSystem.log.clear()
    return settings


def draw(place, settings, out="out", seed=3):
    folder, _ = place
    draw_subset(folder / "plan", "s+(x)", folder / out, folder / "spool", settings, seed)
    return folder / out


def ranges():
    return [(path, start, end) for path, start, end in FlakyFileSystem.log]


@pytest.mark.parametrize("unit", UNITS)
def test_the_same_bytes_from_one_worker_and_from_eight(place, unit):
    settings = plan(place, unit=unit)
    one = draw(place, settings)
    eight = draw(place, settings | {"workers": 8}, "eight")
    assert folder_digest(one) == folder_digest(eight)
    assert pq.read_table(one / "train-00000-of-00001.parquet").num_rows == 40


@pytest.mark.parametrize("unit", UNITS)
def test_killed_again_and_again_it_ends_the_same_and_fetches_nothing_twice(place, unit):
    settings = plan(place, unit=unit, workers=4)
    whole = draw(place, settings, "whole")
    once = sorted(ranges())
    assert len(once) == len(set(once))
    FlakyFileSystem.log.clear()
    count = {"left": 0}
    guard = threading.Lock()

    def kill(path, start, data):
        with guard:
            count["left"] -= 1
            if count["left"] < 0:
                raise Killed
        return data

    FlakyFileSystem.fault = kill
    for _ in range(5):
        count["left"] = 1
        with pytest.raises(Killed):
            draw(place, settings)
        assert not (place[0] / "out").exists()
    FlakyFileSystem.fault = None
    assert folder_digest(draw(place, settings)) == folder_digest(whole)
    assert sorted(ranges()) == once
    assert not (place[0] / "spool").exists()


@pytest.mark.parametrize("unit", UNITS)
def test_bytes_are_those_planned_where_no_row_is_rejected(tmp_path, unit):
    write(tmp_path / "in" / "s+(x)", [row(user=f"{i}") for i in range(200)], shards=5)
    place = (tmp_path, serve(tmp_path / "in"))
    settings = plan(place, unit=unit)
    out = draw(place, settings)
    counts = json.loads((out / "counts.json").read_text())
    planned = json.loads((tmp_path / "plan" / "plan.json").read_text())["units"][unit]
    sent = sum(end - start for _, start, end in ranges())
    assert counts["bytes_fetched"] == planned["bytes"] == sent
    assert counts["row_groups"] == planned["row_groups"]
    assert planned["rows"] == counts["kept"] == 40


def test_replacements_by_row_group_take_few_row_groups_and_none_twice(place):
    settings = plan(place, unit="row_group")
    out = draw(place, settings)
    counts = json.loads((out / "counts.json").read_text())
    assert (counts["kept"], counts["short"]) == (40, 0)
    assert counts["rejected"]["too_many_images"] == counts["drawn"] - 40 > 0
    # Of eight rows of a group six are usable: 40 lie in 7 to 9 of them; some starts are rejected.
    assert 7 <= counts["row_groups"] <= 12
    assert len(ranges()) == len(set(ranges()))


def test_a_subset_that_is_mostly_rejected_reads_each_row_group_few_times(tmp_path):
    rows = [row(user=f"{i}", images=1 if i % 20 == 0 else 4) for i in range(400)]
    write(tmp_path / "in" / "s+(x)", rows, shards=2, row_group_size=20)
    place = (tmp_path, serve(tmp_path / "in"))
    settings = plan(place, unit="row", fraction=0.04)
    out = draw(place, settings)
    counts = json.loads((out / "counts.json").read_text())
    assert counts["kept"] == 16
    reads = [r for r in ranges() if r[1] < 10**9]
    most = max(reads.count(r) for r in set(reads))
    assert most <= 4  # once in each window of ranks, which double
    manifest = pq.read_table(out / "manifest.parquet").to_pylist()
    assert [entry["draw"] for entry in manifest] == list(range(counts["drawn"]))


def test_a_passing_flip_is_mended_by_fetching_again(place):
    settings = plan(place, unit="first")
    good = draw(place, settings, "good")
    flipped = set()

    def flip(path, start, data):
        if start == 4 and path not in flipped:  # the first row group of each shard, once
            flipped.add(path)
            return data[:20] + bytes([data[20] ^ 0xFF]) + data[21:]
        return data

    FlakyFileSystem.fault = flip
    assert folder_digest(draw(place, settings)) == folder_digest(good)
    assert flipped


def first_group(path, start):
    return start == 4 and "00002-of" in path


def test_what_a_network_spoils_is_asked_for_until_it_is_right_or_patience_ends(place, capsys):
    settings = plan(place, unit="first", retries=3, fraction=0.9)
    good = draw(place, settings, "good")
    asked = len(FlakyFileSystem.log)
    FlakyFileSystem.fault = spoiling(3, lambda data: 20, first_group)
    FlakyFileSystem.log.clear()
    capsys.readouterr()
    assert folder_digest(draw(place, settings)) == folder_digest(good)
    assert len(FlakyFileSystem.log) == asked + 3
    assert f"{asked + 3} requests, 3 of them tried again" in capsys.readouterr().out
    FlakyFileSystem.fault = spoiling(4, lambda data: 20, first_group)
    told = r"00002-of.*: row group 0: 4 answers of the right length, each with other bytes"
    with pytest.raises(InputError, match=told):
        draw(place, settings, "never")
    assert not list((place[0] / "spool").glob("*/*.json"))
    FlakyFileSystem.fault = None
    assert folder_digest(draw(place, settings, "later")) == folder_digest(good)


@pytest.mark.parametrize("retries", [0, 5])
def test_damage_at_the_source_is_asked_for_twice_whatever_the_patience(place, retries):
    settings = plan(place, unit="first", retries=retries, fraction=0.9)
    FlakyFileSystem.fault = lambda path, start, data: (
        b"?" * len(data) if first_group(path, start) else data
    )
    out = draw(place, settings)
    assert sum(first_group(path, start) for path, start, _ in FlakyFileSystem.log) == 2
    counts = json.loads((out / "counts.json").read_text())
    assert counts["rejected"]["unreadable_row_group"] == 8


@pytest.mark.parametrize("unit", UNITS)
def test_a_row_group_that_stays_torn_is_named_and_its_rows_replaced(tmp_path, unit):
    folder = tmp_path / "in" / "s+(x)"
    folder.mkdir(parents=True)
    table = [row(user=f"q{i}") for i in range(60)]
    import pyarrow as pa

    from tests.tiny import SCHEMA

    path = folder / "train-00000-of-00001.parquet"
    pq.write_table(pa.Table.from_pylist(table, schema=SCHEMA), path, row_group_size=10,
                   write_page_checksum=True)  # fmt: skip
    group = pq.read_metadata(path).row_group(0)
    data = bytearray(path.read_bytes())
    data[group.column(1).data_page_offset + 60] ^= 1  # within a page of images: only its sum tells
    path.write_bytes(data)
    place = (tmp_path, serve(tmp_path / "in"))
    out = draw(place, plan(place, unit=unit, fraction=0.5), "out")
    counts = json.loads((out / "counts.json").read_text())
    manifest = pq.read_table(out / "manifest.parquet").to_pylist()
    torn = [entry for entry in manifest if entry["reason"] == "unreadable_row_group"]
    assert counts["kept"] == 30
    assert counts["rejected"]["unreadable_row_group"] == len(torn)
    assert {entry["row_group"] for entry in torn} <= {0}
    assert all(entry["detail"] and "\n" not in entry["detail"] for entry in torn)
    assert not any(entry["row_group"] == 0 for entry in manifest if entry["status"] == "kept")
    if unit == "first":
        assert len(torn) == 10


def test_no_flipped_byte_in_a_row_group_ends_the_run(tmp_path):
    folder = tmp_path / "in" / "s+(x)"
    write(folder, [row(user=f"q{i}") for i in range(12)], row_group_size=6)
    path = next(folder.glob("*.parquet"))
    data = path.read_bytes()
    place = (tmp_path, serve(tmp_path / "in"))
    settings = plan(place, fraction=0.5, retries=0)
    name = next(p for p in FlakyFileSystem.store if p.endswith(path.name))
    group = pq.read_metadata(path).row_group(0)
    ends = np.cumsum(
        [4] + [group.column(i).total_compressed_size for i in range(group.num_columns)]
    )
    rng = np.random.default_rng(1)
    columns = rng.permutation(np.arange(20) % group.num_columns)
    for number, place_of in enumerate(rng.integers(ends[columns], ends[columns + 1])):
        flipped = bytearray(data)
        flipped[place_of] ^= 1 << int(rng.integers(8))
        FlakyFileSystem.store[name].seek(0)
        FlakyFileSystem.store[name].write(flipped)
        out = draw(place, settings, f"out{number}")
        assert json.loads((out / "counts.json").read_text())["kept"] >= 5


def test_a_source_that_changed_since_the_plan_is_refused(place):
    settings = plan(place)
    for name in list(FlakyFileSystem.store):
        data = FlakyFileSystem.store[name].getvalue()
        FlakyFileSystem.store[name].seek(0)
        FlakyFileSystem.store[name].write(data[: len(data) // 2] + data[: len(data) // 2])
    with pytest.raises(InputError, match="changed since it was planned"):
        draw(place, settings)


def test_an_end_of_patience_is_one_line_and_leaves_what_was_fetched(place):
    settings = plan(place, retries=0)

    def down(path, start, data):
        if len(FlakyFileSystem.log) >= 4:
            raise ConnectionResetError("reset")
        return data

    FlakyFileSystem.fault = down
    with pytest.raises(InputError, match=r"1 attempt failed.*reset.*run again"):
        draw(place, settings)
    assert not (place[0] / "out").exists()
    done = set(ranges())
    FlakyFileSystem.fault = None
    FlakyFileSystem.log.clear()
    draw(place, settings)
    assert not done & set(ranges())


def test_an_interrupt_does_not_wait_for_what_waits_to_try_again(place, monkeypatch):
    settings = plan(place, workers=2, unit="first")
    monkeypatch.setattr("interlace.sampling.ranges.FIRST_WAIT_S", 30)
    failed, tries, real = threading.Event(), [], Fetcher._group

    def reset(path, start, data):
        tries.append((path, start))
        failed.set()
        raise ConnectionResetError("reset")

    def group(self, number):
        if number == 0:
            failed.wait(20)
            raise KeyboardInterrupt
        FlakyFileSystem.fault = reset
        return real(self, number)

    monkeypatch.setattr(Fetcher, "_group", group)
    with pytest.raises(KeyboardInterrupt):
        draw(place, settings)
    assert tries
    assert len(tries) == len(set(tries))


def test_what_another_seed_spooled_is_no_sample_of_this_one(place):
    settings = plan(place)
    stale = place[0] / "spool" / "0123456789abcdef"
    stale.mkdir(parents=True)
    (stale / "0000000-00.arrow").write_bytes(b"not mine")
    assert (draw(place, settings) / "counts.json").exists()


def test_the_manifest_is_in_drawing_order_and_its_rows_are_the_sources(place):
    settings = plan(place, unit="row_group")
    out = draw(place, settings)
    manifest = pq.read_table(out / "manifest.parquet").to_pylist()
    assert [entry["draw"] for entry in manifest] == list(range(len(manifest)))
    table = pq.read_table(out / "train-00000-of-00001.parquet")
    kept = {entry["id"] for entry in manifest if entry["status"] == "kept"}
    assert set(table["id"].to_pylist()) == kept
    assert len(kept) == 40
    rows = dict(zip(table["id"].to_pylist(), table["texts"].to_pylist(), strict=True))
    for entry in manifest:
        if entry["status"] == "kept":
            path = place[0] / "in" / "s+(x)" / entry["shard"]
            group = pq.ParquetFile(path).read_row_group(entry["row_group"])
            assert rows[entry["id"]] == group["texts"][entry["row"]].as_py()
            stem = entry["shard"].removesuffix(".parquet")
            assert entry["id"] == f"s+(x)/{stem}/{entry['row_group']}/{entry['row']}"


def test_a_row_group_that_announces_too_much_is_left_alone(place, monkeypatch):
    import interlace.sampling.fetch as fetch

    settings = plan(place, unit="first")
    monkeypatch.setattr(fetch, "MOST_UNPACKED", 10)
    out = draw(place, settings)
    counts = json.loads((out / "counts.json").read_text())
    assert (counts["kept"], counts["short"], counts["drawn"]) == (0, 40, 200)
    assert counts["rejected"]["unreadable_row_group"] == 200
    assert ranges() == []


def test_no_more_is_decoded_at_once_than_there_is_room_for(place, monkeypatch):
    import interlace.sampling.fetch as fetch

    settings = plan(place, unit="first")
    groups = load_index(place[0] / "plan" / "index.parquet")[0].groups
    largest = int((groups["length"] + groups["unpacked"]).max())
    room = int(largest * 2.5)
    monkeypatch.setattr(fetch, "IN_FLIGHT", room)
    held, most, guard = [0], [0], threading.Lock()
    real = fetch.Fetcher._group

    def watched(self, group):
        amount = int(groups["length"][group] + groups["unpacked"][group])
        with guard:
            held[0] += amount
            most[0] = max(most[0], held[0])
        time.sleep(0.02)
        table = real(self, group)
        with guard:
            held[0] -= amount
        return table

    monkeypatch.setattr(fetch.Fetcher, "_group", watched)
    draw(place, settings | {"workers": 8})
    assert largest < most[0] <= room  # more than one at a time, but not eight
    monkeypatch.setattr(fetch, "IN_FLIGHT", 1)
    most[0] = 0
    draw(place, settings | {"workers": 8}, "narrow")
    assert 0 < most[0] <= largest
    assert folder_digest(place[0] / "out") == folder_digest(place[0] / "narrow")


def test_what_unpacks_to_much_takes_little_of_the_disk(tmp_path, monkeypatch):
    zeros = [row(user=f"{i}", data=b"\0" * 2**20) for i in range(8)]
    write(tmp_path / "in" / "s+(x)", zeros, row_group_size=4)
    place = (tmp_path, serve(tmp_path / "in"))
    settings = plan(place, fraction=1.0)
    sizes = []
    real = Fetcher._load

    def watched(self, key):
        sizes.append(self._path(key, "arrow").stat().st_size)
        return real(self, key)

    monkeypatch.setattr(Fetcher, "_load", watched)
    draw(place, settings)
    assert len(sizes) == 2
    assert max(sizes) < 2**19


def test_columns_a_shard_lacks_come_out_null(tmp_path):
    import pyarrow as pa

    write(tmp_path / "s", [row()] * 2)
    path = next((tmp_path / "s").glob("*.parquet"))
    metadata = pq.read_metadata(path)
    schema = pq.read_schema(path).remove_metadata().append(pa.field("more", pa.int64()))
    group = metadata.row_group(0)
    length = sum(group.column(i).total_compressed_size for i in range(group.num_columns))
    data = path.read_bytes()[4 : 4 + length]
    table = decode_group(metadata, 0, data, 4, schema)
    assert table.schema == schema
    assert table["more"].null_count == 2
    assert table["images"][0].as_py()[0]["bytes"] == png()


def test_an_unknown_subset_is_named(place):
    settings = plan(place)
    with pytest.raises(InputError, match=r"plan\.json: no subset 's' in it$"):
        draw_subset(place[0] / "plan", "s", place[0] / "o", place[0] / "spool", settings, 0)
    assert [s.name for s in load_index(place[0] / "plan" / "index.parquet")] == ["s+(x)"]


def test_a_spool_or_a_folder_of_another_process_is_left_alone(place):
    settings, (folder, _) = plan(place), place
    for held in ("spool", "out"):
        with claimed(folder / held):
            with pytest.raises(InputError, match=rf"{held}: process {os.getpid()} on .*run again"):
                draw(place, settings)
            assert not (folder / "out").exists()
    assert draw(place, settings).exists()


def test_a_full_disk_is_one_line_and_what_was_fetched_is_kept(place, monkeypatch):
    settings, (folder, _) = plan(place), place
    full = OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    def none_left(*arguments):
        raise full

    with monkeypatch.context() as patch:
        patch.setattr("interlace.sampling.subset.pq.write_table", none_left)
        with pytest.raises(InputError, match=r"s\+\(x\).*disk is full.*data\.fraction") as caught:
            draw(place, settings)
    assert "\n" not in str(caught.value)
    assert not (folder / "out").exists()
    FlakyFileSystem.log.clear()
    assert draw(place, settings).exists()
    assert not ranges()
