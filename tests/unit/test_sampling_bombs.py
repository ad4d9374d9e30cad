"""Row groups that unpack to far more than their footer announces: counted, survived, bounded."""

import errno
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from interlace.io import folder_digest
from interlace.sampling import decoder, fetch
from interlace.sampling.decoder import Decoders
from interlace.sampling.decoding import Task, UnreadableRowGroupError
from interlace.sampling.footer_parser import pack
from interlace.sampling.run import draw_samples
from tests.tiny import SCHEMA

MB = 1_000_000
GOOD = [{"texts": [{"user": f"q{n}", "assistant": "a"}], "source": "x"} for n in range(10)]


def bomb(kind, rows):
    """Return a table of `rows` MB and how to write it in a few dozen kB that announce 1 MB."""
    table = pa.Table.from_pylist([GOOD[0]] * rows, schema=SCHEMA)
    options = {"write_statistics": False, "store_schema": False}
    big, zeros = pa.array(["x" * MB]), pa.array(np.zeros(rows, np.int32))
    if kind == "nested":
        users = pa.DictionaryArray.from_arrays(zeros, big)
        turns = pa.StructArray.from_arrays([users, pa.array(["a"] * rows)], ["user", "assistant"])
        lists = pa.ListArray.from_arrays(pa.array(np.arange(rows + 1), pa.int32()), turns)
        table = table.set_column(SCHEMA.get_field_index("texts"), "texts", lists)
        return table, options | {"dictionary_pagesize_limit": 2 * MB}
    if kind == "dictionary":
        column = pa.DictionaryArray.from_arrays(zeros, big)
        options |= {"dictionary_pagesize_limit": 2 * MB}
    else:
        column = pa.chunked_array([big] * rows)
        options |= {"use_dictionary": False, "column_encoding": {"source": "DELTA_BYTE_ARRAY"}}
    return table.set_column(SCHEMA.get_field_index("source"), "source", column), options


def write(folder, kind, rows, bombs=1):
    """Write a shard of such row groups and one of ten good rows."""
    (folder / "s").mkdir(parents=True)
    table, options = bomb(kind, rows)
    table = pa.concat_tables([table] * bombs)
    pq.write_table(table, folder / "s" / "a.parquet", row_group_size=rows, **options)
    pq.write_table(pa.Table.from_pylist(GOOD, schema=SCHEMA), folder / "s" / "b.parquet")
    assert (folder / "s" / "a.parquet").stat().st_size < 100_000 * bombs
    assert pq.read_metadata(folder / "s" / "a.parquet").row_group(0).total_byte_size < 3 * MB
    return folder


def total_of(out):
    return json.loads((out / "samples.json").read_text())["total"]


DRAW = """
import json, resource, sys
from interlace.sampling import decoder, fetch
from interlace.sampling.run import draw_samples
fetch.MOST_UNPACKED, decoder.SLACK = 2**28, 2**26
mine = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
before = mine()
draw_samples(sys.argv[1], sys.argv[2], {"fraction": 1.0}, seed=0)
from interlace.sampling.decoder import DECODERS
DECODERS.close()
print(mine() - before, resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss)
"""


def test_what_one_takes_is_limited_however_large_it_is(tmp_path):
    rows = 480  # 480 MB: above MOST_UNPACKED, and three times that to decode
    write(tmp_path / "in", "dictionary", rows)
    done = subprocess.run(
        [sys.executable, "-c", DRAW, str(tmp_path / "in"), str(tmp_path / "out")],
        capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    total = total_of(tmp_path / "out")
    assert total["rejected"]["unreadable_row_group"] == rows
    assert total["kept"] == 10
    mine, childs = (1024 * int(peak) for peak in done.stdout.splitlines()[-1].split())
    assert mine < 100 * MB
    # Three copies, a quarter of slack and what Python and Arrow take; without a limit it is 5.4.
    assert childs < 4.2 * 2**28


@pytest.mark.parametrize("kind", ["dictionary", "nested", "delta"])
def test_a_row_group_that_unpacks_to_more_than_it_announces_cannot_be_read(
    tmp_path, kind, monkeypatch
):
    monkeypatch.setattr(fetch, "MOST_UNPACKED", 30 * MB)
    monkeypatch.setattr(decoder, "SLACK", 30 * MB)
    write(tmp_path / "in", kind, 60, bombs=2)
    draws = (1, 8) if kind == "dictionary" else (1,)
    for workers in draws:
        settings = {"fraction": 1.0, "workers": workers}
        draw_samples(tmp_path / "in", tmp_path / f"{workers}", settings, seed=0)
        total = total_of(tmp_path / f"{workers}")
        assert (total["kept"], total["rejected"]["unreadable_row_group"]) == (10, 120)
    assert len({folder_digest(tmp_path / f"{workers}") for workers in draws}) == 1


@pytest.fixture
def decoders():
    """Decoders of their own, which are ended."""
    mine = Decoders(2)
    yield mine
    mine.close()


def spool(decoders, file, path, rows=None, most=1000 * MB):
    """Have the one row group of a file spooled, whose footer is said to announce 1 kB."""
    data = file.read_bytes()
    footer = data[-int.from_bytes(data[-8:-4], "little") - 8 :]
    task = Task(0, 4, pack(pq.read_schema(file)), 1000, most)
    decoders.spool(task, footer, data[4 : len(data) - len(footer)], rows, path)
    return path


def packed(path, count, **options):
    """Write `count` strings of a megabyte, of which pages hold little."""
    column = pa.chunked_array([pa.array(["x" * MB])] * count)
    pq.write_table(pa.table({"a": column, "n": range(count)}), path, row_group_size=count,
                   use_dictionary=False, **options)  # fmt: skip
    assert path.stat().st_size < 10 * MB
    return path


@pytest.mark.parametrize("compression", ["zstd", "snappy"])
def test_compressed_pages_unpack_to_no_more_than_is_allowed(tmp_path, decoders, compression):
    file = packed(tmp_path / "a", 60, compression=compression)
    with pytest.raises(UnreadableRowGroupError, match=r"unpacks to 6.* more than 30000000"):
        spool(decoders, file, tmp_path / "spool", most=30 * MB)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a"]


def test_one_that_needs_more_than_it_announces_has_it_when_alone(tmp_path, decoders, monkeypatch):
    file = packed(tmp_path / "a", 60, compression="zstd")
    monkeypatch.setattr(decoder, "SLACK", 20 * MB)
    with pytest.raises(UnreadableRowGroupError, match=r"cannot be decoded in [0-9]+ bytes"):
        spool(decoders, file, tmp_path / "spool", most=10 * MB)
    path = spool(decoders, file, tmp_path / "spool", np.array([3, 58]), most=100 * MB)
    with pa.memory_map(str(path)) as source:
        table = pa.ipc.open_file(source).read_all()
    assert table["n"].to_pylist() == [3, 58]
    assert table["a"].to_pylist() == ["x" * MB] * 2
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a", "spool"]


def test_a_child_that_was_ended_is_replaced(tmp_path, decoders):
    file = packed(tmp_path / "a", 2)
    spool(decoders, file, tmp_path / "one")
    (child,) = decoders._idle
    os.kill(child.pid, signal.SIGKILL)
    assert spool(decoders, file, tmp_path / "two").read_bytes() == (tmp_path / "one").read_bytes()
    assert [other.pid for other in decoders._idle] != [child.pid]


def test_a_full_disk_is_no_fault_of_the_row_group(tmp_path, decoders):
    file = packed(tmp_path / "a", 2)
    with pytest.raises(OSError) as caught:
        spool(decoders, file, tmp_path / "gone" / "spool")
    assert caught.value.errno == errno.ENOENT


def test_a_child_that_cannot_start_is_no_fault_of_the_row_group(tmp_path, decoders, monkeypatch):
    monkeypatch.setattr(sys, "executable", "/bin/false")
    with pytest.raises(OSError, match="does not start"):
        spool(decoders, packed(tmp_path / "a", 2), tmp_path / "spool")


ORPHAN = """
import time
from interlace.sampling.decoder import DECODERS
DECODERS.start()
print(DECODERS._idle[0].pid, flush=True)
time.sleep(1000)
"""


def test_a_killed_parent_leaves_no_child():
    with subprocess.Popen([sys.executable, "-c", ORPHAN], stdout=subprocess.PIPE) as parent:
        child = Path("/proc") / parent.stdout.readline().decode().strip()
        assert child.exists()
        parent.kill()
    while child.exists() and "\nState:\tZ" not in (child / "status").read_text():
        time.sleep(0.05)
