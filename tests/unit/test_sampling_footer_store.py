"""Footers kept as they were read: whole or as none, small, and only of sources that stay."""

from concurrent.futures import ThreadPoolExecutor

from interlace.sampling.footer_store import FOLDER, FooterStore, move_footers
from interlace.sampling.ranges import fingerprint
from tests.flaky import FlakyFileSystem, serve
from tests.unit.shards import IMAGES, TEXTS, read, shard

FOOTER = b"columns and offsets, again and again. " * 1000


def names(folder):
    return [path.name for path in folder.iterdir()]


def test_a_footer_comes_back_from_any_of_the_folders_and_goes_to_the_last(tmp_path):
    digest, folders = fingerprint(FOOTER), [tmp_path / name for name in "abc"]
    store = FooterStore(*folders)
    assert store.get(digest, len(FOOTER)) is None
    store.put(digest, FOOTER)
    assert names(tmp_path / "c" / FOLDER) == [digest]
    assert not (tmp_path / "a").exists()
    assert (tmp_path / "c" / FOLDER / digest).stat().st_size < len(FOOTER) / 100
    assert store.get(digest, len(FOOTER)) == FOOTER
    assert FooterStore(*reversed(folders)).get(digest, len(FOOTER)) == FOOTER


def test_what_is_torn_or_of_another_footer_is_as_none(tmp_path):
    digest, store = fingerprint(FOOTER), FooterStore(tmp_path)
    path = tmp_path / FOLDER / digest
    store.put(digest, FOOTER)
    whole = path.read_bytes()
    for spoiled in (b"", whole[:20], b"?" + whole, whole[:-3] + b"???"):
        path.write_bytes(spoiled)
        assert store.get(digest, len(FOOTER)) is None
    path.write_bytes(whole)
    assert store.get(digest, len(FOOTER) - 1) is None
    other = fingerprint(FOOTER + b"x")
    path.rename(path.with_name(other))
    assert store.get(other, len(FOOTER)) is None


def test_threads_that_keep_the_same_footer_leave_it_once_and_whole(tmp_path):
    digest, store = fingerprint(FOOTER), FooterStore(tmp_path)
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda _: store.put(digest, FOOTER), range(64)))
    assert names(tmp_path / FOLDER) == [digest]
    assert store.get(digest, len(FOOTER)) == FOOTER


def test_footers_move_and_take_the_place_of_others(tmp_path):
    digest = fingerprint(FOOTER)
    move_footers(tmp_path / "none", tmp_path / "plan")
    FooterStore(tmp_path / "plan").put("stale", b"")
    FooterStore(tmp_path / "work").put(digest, FOOTER)
    move_footers(tmp_path / "work", tmp_path / "plan")
    assert names(tmp_path / "plan" / FOLDER) == [digest]
    assert names(tmp_path / "work") == []


def test_footers_of_a_source_that_may_change_are_not_kept(tmp_path):
    shard(tmp_path / "in", "a", {"images": IMAGES, "texts": TEXTS})
    _, reader = read(serve(tmp_path / "in"), tmp_path / "cache")
    assert reader.requests == len(FlakyFileSystem.log) == 1
    assert not (tmp_path / "cache" / FOLDER).exists()
