"""A source at a commit: its footers are read once, by planning, and kept for those who fetch."""

from dataclasses import replace

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from interlace.errors import InputError
from interlace.io import folder_digest, remove
from interlace.sampling import plan as planning
from interlace.sampling import subset as drawing
from interlace.sampling.footer_store import FOLDER
from interlace.sampling.plan import plan_samples
from interlace.sampling.source import open_source
from interlace.sampling.subset import draw_subset
from tests.flaky import FlakyFileSystem, serve
from tests.tiny import SCHEMA
from tests.unit.sample_rows import row

SETTINGS = {"fraction": 0.5, "retries": 0, "workers": 1}


@pytest.fixture
def home(tmp_path, monkeypatch):
    """An empty HF_HOME; every source says that it is at a commit."""

    def opened(address, retries):
        return replace(open_source(address, retries), revision="c" * 40)

    monkeypatch.setattr("huggingface_hub.constants.HF_HOME", str(tmp_path / "home"))
    for module in (planning, drawing):
        monkeypatch.setattr(module, "open_source", opened)
    return tmp_path / "home"


def write(folder, lengths):
    """Write a shard of a row group for each length of text, of four rows."""
    rows = [row(user="x" * length) for length in lengths for _ in range(4)]
    path = folder / "s" / "a.parquet"
    path.parent.mkdir(parents=True, exist_ok=True)
    table = pa.Table.from_pylist(rows, schema=SCHEMA)
    pq.write_table(table, path, row_group_size=4, compression="none", use_dictionary=False)
    return path


def plan(tmp_path, address):
    plan_samples(address, tmp_path / "work" / "plan", SETTINGS, seed=0, say=lambda text: None)


def draw(tmp_path, out="out"):
    """Draw to a folder; return how many footers are asked for."""
    FlakyFileSystem.log.clear()
    work = tmp_path / "work"
    draw_subset(work / "plan", "s", tmp_path / out, work / "spool", SETTINGS, 0)
    sizes = {path: len(file.getvalue()) for path, file in FlakyFileSystem.store.items()}
    return sum(end == sizes[path] for path, _, end in FlakyFileSystem.log)


def test_fetching_does_not_ask_for_footers_again_unless_they_are_lost(home, tmp_path):
    write(tmp_path / "in", [10, 20, 30, 40])
    plan(tmp_path, serve(tmp_path / "in"))
    assert draw(tmp_path) == 0
    (store,) = home.rglob(FOLDER + "/flaky*/" + FOLDER)
    (kept,) = store.iterdir()
    kept.write_bytes(kept.read_bytes()[:-9])
    assert draw(tmp_path, "torn") == 1
    remove(home)
    assert draw(tmp_path, "lost") == 1
    assert {folder_digest(tmp_path / name) for name in ("torn", "lost")} == {
        folder_digest(tmp_path / "out")
    }


def test_where_the_cache_cannot_be_written_they_lie_with_the_plan(home, tmp_path):
    home.write_text("no folder")
    write(tmp_path / "in", [10, 20, 30, 40])
    plan(tmp_path, serve(tmp_path / "in"))
    assert len(list((tmp_path / "work" / "plan" / FOLDER).iterdir())) == 1
    assert not list((tmp_path / "work").glob(".plan*"))
    assert draw(tmp_path) == 0


def test_a_stale_cache_needs_nothing_deleted_that_the_message_does_not_name(home, tmp_path):
    size = write(tmp_path / "in", [90, 80, 70, 60]).stat().st_size
    address = serve(tmp_path / "in")
    plan(tmp_path, address)
    assert write(tmp_path / "in", [60, 70, 80, 90]).stat().st_size == size
    serve(tmp_path / "in")
    with pytest.raises(InputError) as caught:
        draw(tmp_path)
    told = f"(or its footer came spoiled then); delete {tmp_path / 'work'} and run again"
    assert str(caught.value).endswith(told)
    remove(tmp_path / "work")
    plan(tmp_path, address)
    draw(tmp_path)
    kept = pq.read_table(tmp_path / "out" / "train-00000-of-00001.parquet")
    assert len(kept) == 8
