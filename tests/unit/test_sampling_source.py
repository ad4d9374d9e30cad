"""Addresses and what is below them: subsets, splits, names, and one line for what is wrong."""

import json
import os
import subprocess
import sys
from pathlib import Path
from urllib.parse import quote, unquote

import fsspec
import pytest

from interlace.errors import InputError
from interlace.sampling.ranges import RangeReader
from interlace.sampling.source import Source, list_shards, open_source
from tests.finevision_like import REPO, write_scaled
from tests.flaky import FlakyFileSystem, serve
from tests.loopback_hub import Hub


def touch(root, *names):
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(b"x" * 7)


def listed(address, **options):
    shards, passed_over = list_shards(open_source(str(address)), **options)
    return {name: [s.name for s in files] for name, files in shards.items()}, passed_over


def test_subsets_and_shards_are_sorted_and_sized(tmp_path):
    touch(tmp_path, "b+(x)-1/train-1.parquet", "b+(x)-1/train-0.parquet", "a/0.parquet",
          "a/notes.txt", "top.parquet", ".hidden/0.parquet", "a/.part/0.parquet",
          "a/.0.parquet")  # fmt: skip
    found, passed_over = listed(tmp_path)
    assert found == {"a": ["0.parquet"], "b+(x)-1": ["train-0.parquet", "train-1.parquet"]}
    assert passed_over == [".hidden/0.parquet", "a/.0.parquet", "a/.part/0.parquet", "top.parquet"]
    shards, _ = list_shards(open_source(str(tmp_path)))
    assert {s.size for files in shards.values() for s in files} == {7}


def test_other_splits_are_passed_over_and_named(tmp_path):
    touch(tmp_path, "data/train-0.parquet", "data/test-0.parquet", "data/validation-0.parquet",
          "conf/train/0.parquet", "conf/test/0.parquet", "big/partial-train/0.parquet",
          "big/test/0.parquet", "eval/test-0.parquet", "trainers/x.parquet")  # fmt: skip
    found, passed_over = listed(tmp_path)
    assert found == {
        "big": ["partial-train/0.parquet"], "conf": ["train/0.parquet"],
        "data": ["train-0.parquet"], "eval": ["test-0.parquet"], "trainers": ["x.parquet"],
    }  # fmt: skip
    assert passed_over == ["big/test/0.parquet", "conf/test/0.parquet", "data/test-0.parquet",
                           "data/validation-0.parquet"]  # fmt: skip
    found, _ = listed(tmp_path, only_train=True)
    assert set(found) == {"big", "conf", "data"}


def test_a_source_without_a_train_split_is_refused_where_only_that_will_do(tmp_path):
    touch(tmp_path, "data/test-0.parquet")
    with pytest.raises(InputError, match=r"no shard of a split `train`, such as data/test-0"):
        listed(tmp_path, only_train=True)


def test_subsets_can_be_selected(tmp_path):
    touch(tmp_path, "alpha/0.parquet", "beta/0.parquet")
    assert set(listed(tmp_path, subsets=["beta"])[0]) == {"beta"}
    with pytest.raises(InputError, match=r"data\.subsets: .* 'alpa'; did you mean 'alpha'"):
        listed(tmp_path, subsets=["alpa"])


def test_a_name_that_no_file_or_wildcard_can_have_is_refused(tmp_path):
    touch(tmp_path, "{x}/0.parquet", "b/0.parquet")
    with pytest.raises(InputError, match=r"\{x\}.*data\.subsets"):
        listed(tmp_path)
    assert set(listed(tmp_path, subsets=["b"])[0]) == {"b"}


def test_any_fsspec_address_lists_like_a_folder(tmp_path):
    touch(tmp_path, "a/train/0.parquet", "b/0.parquet")
    assert listed(serve(tmp_path)) == listed(tmp_path)
    fsspec.filesystem("memory").put(str(tmp_path), "/there", recursive=True)
    assert listed("memory://there") == listed(tmp_path)
    assert listed(f"file://{tmp_path}/") == listed(tmp_path)


@pytest.mark.parametrize(
    ("address", "match"),
    [
        ("absent/folder", "no such folder"),
        ("nowhere://x", "no installed package can read it"),
        ("hf://datasets/", "no hub dataset"),
        ("hf://datasets/one", "no hub dataset"),
    ],
)
def test_an_address_that_is_none_is_one_line(address, match):
    with pytest.raises(InputError, match=match) as caught:
        listed(address)
    assert "\n" not in str(caught.value)
    assert address in str(caught.value)


@pytest.mark.parametrize(
    ("address", "module"),
    [("http://host/data", "aiohttp"), ("https://host/data", "aiohttp"), ("s3://b/data", "s3fs")],
)
def test_an_address_whose_package_is_missing_is_one_line_that_names_it(
    monkeypatch, address, module
):
    monkeypatch.setitem(sys.modules, module, None)  # cannot be imported, even if it is installed
    for loaded in [n for n in sys.modules if n.startswith("fsspec.implementations.http")]:
        monkeypatch.delitem(sys.modules, loaded)
    for protocol in ("http", "https", "s3"):
        monkeypatch.delitem(sys.modules["fsspec.registry"]._registry, protocol, raising=False)
    with pytest.raises(InputError, match=rf"no module `{module}`.*install it") as caught:
        open_source(address)
    assert "\n" not in str(caught.value)
    assert str(caught.value).startswith(f"{address}: ")


@pytest.mark.parametrize("error", [OSError("no libjvm\ndlopen a\ndlopen b"), ConnectionError("x")])
def test_a_filesystem_that_cannot_even_be_made_is_one_line(monkeypatch, error):
    def fail(address):
        raise error

    monkeypatch.setattr("fsspec.core.url_to_fs", fail)
    with pytest.raises(InputError, match=r"hdfs://a/b: cannot be opened \(") as caught:
        open_source("hdfs://a/b")
    assert "\n" not in str(caught.value)


def test_a_commit_is_taken_at_its_word_without_asking(monkeypatch):
    import huggingface_hub

    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", False)
    commit = "0123456789abcdef" * 2 + "01234567"
    source = open_source(f"hf://datasets/org/name@{commit}/inside", retries=0)
    assert source.revision == commit
    assert source.address == f"hf://datasets/org/name@{commit}/inside"
    assert source.path("s", "t.parquet") == f"datasets/org/name@{commit}/inside/s/t.parquet"


def test_parquet_beside_the_subsets_and_below_the_splits_is_passed_over_by_name(tmp_path):
    touch(tmp_path, "a/0.parquet", "a/split/1/deep.parquet", "top.parquet", "b/0.parquet")
    found, passed_over = listed(tmp_path)
    assert found == {"a": ["0.parquet"], "b": ["0.parquet"]}
    assert passed_over == ["a/split/1/deep.parquet", "top.parquet"]
    assert listed(tmp_path, subsets=["b"])[1] == []


class Pages(FlakyFileSystem):
    """As fsspec sees a web server: every page a file, quoted links, no sizes in a listing."""

    protocol = ("http", "https")
    absent: str | None = None

    def ls(self, path, detail=True, **options):
        assert path == quote(unquote(path))
        found = super().ls(unquote(path), detail=True)
        return [i | {"name": quote(i["name"]), "size": None} for i in found]

    def info(self, path, **options):
        if path == self.absent:
            raise FileNotFoundError(path)
        return super().info(unquote(path)) | {"type": "file"}

    def cat_file(self, path, start=None, end=None, **options):
        assert path == quote(unquote(path))
        return super().cat_file(unquote(path), start, end)


def test_a_web_server_lists_and_reads_like_a_folder(tmp_path):
    touch(tmp_path, "a(b)+c/train 0.parquet", "d/50%.parquet", "d/%41.parquet")
    serve(tmp_path)
    source = Source("http://host/data", None, Pages(), "/data")
    shards, _ = list_shards(source)
    assert shards == list_shards(open_source(str(tmp_path)))[0]
    for files in shards.values():
        for shard in files:
            path = source.path(shard.subset, shard.name)
            assert RangeReader(source.filesystem).read(path, 2, 5) == b"x" * 5


def test_a_size_that_a_web_server_fails_to_tell_is_asked_for_again(tmp_path, monkeypatch):
    monkeypatch.setattr("interlace.sampling.ranges.FIRST_WAIT_S", 0)
    touch(tmp_path, "a/0.parquet")
    serve(tmp_path)
    source = Source("http://host/data", None, Pages(), "/data")
    monkeypatch.setattr(Pages, "absent", "/data/a/0.parquet")
    with pytest.raises(InputError, match=r"listing: 3 attempts failed.*its size is not to be had"):
        list_shards(source, retries=2)
    monkeypatch.setattr(Pages, "absent", None)
    monkeypatch.setattr(Pages, "sizes", lambda self, paths: [None for _ in paths])
    with pytest.raises(InputError, match=r"/data/a/0\.parquet: the server does not say how large"):
        list_shards(source)


def test_a_folder_that_cannot_be_listed_is_no_empty_one(tmp_path, monkeypatch):
    touch(tmp_path, "a/0.parquet", "b/0.parquet")
    address, listing = serve(tmp_path), FlakyFileSystem.ls

    def closed(self, path, *arguments, **options):
        if path.endswith("/b"):
            raise PermissionError("closed")
        return listing(self, path, *arguments, **options)

    monkeypatch.setattr(FlakyFileSystem, "ls", closed)
    with pytest.raises(InputError, match=r"listing: not allowed.*closed"):
        listed(address)


@pytest.mark.parametrize(
    "address",
    [
        "http://me:S3CRET@host/data",
        "https://host/d?sig=S3CRET",
        "s3://key:S3CRET@b/c",
        "https://S3CRET@host/data",
        "simplecache::HTTP://S3CRET@host/data",
    ],
)
def test_an_address_with_a_secret_is_refused_without_saying_it(address):
    with pytest.raises(InputError, match="FSSPEC_") as caught:
        open_source(address)
    assert "S3CRET" not in str(caught.value)


LIST_TWELVE_TIMES = """
import sys
from interlace.sampling import ranges
from interlace.sampling.hub import HubFiles
from interlace.sampling.ranges import RangeReader
from interlace.sampling.source import Source, list_shards, open_source
ranges.FIRST_WAIT_S = 0.01
for _ in range(12):
    HubFiles.clear_instance_cache()
    print(len(list_shards(open_source(sys.argv[1], 2), None, 2)[0]))
"""


def test_any_request_of_a_listing_may_fail_once_in_passing(tmp_path):
    write_scaled(tmp_path / "hub", {"chartqa": 40}, shard_rows=40, group_rows=20)

    class Failing(Hub):
        asked = 0
        given: tuple = ()

        def next_fault(self, path, span=None):
            round_, number = divmod(self.asked, 4)  # three requests, one of them again
            self.asked += 1
            fault, place = ("408", "429", "500", "503")[round_ % 4], round_ // 4
            if number != place:
                return None
            self.given += ((fault, place),)
            return fault

    with Failing(tmp_path / "hub", retry_after_s=0) as hub:
        variables = {key: v for key, v in os.environ.items() if not key.startswith("HF_")}
        done = subprocess.run(
            [sys.executable, "-c", LIST_TWELVE_TIMES, f"hf://datasets/{REPO}"],
            env=variables | {"HF_ENDPOINT": hub.url, "HF_HOME": str(tmp_path / "home")},
            capture_output=True,
            text=True,
        )
    assert done.stdout.split() == ["1"] * 12, done.stderr
    assert set(hub.given) == {(f, n) for f in ("408", "429", "500", "503") for n in range(3)}


@pytest.fixture
def snapshot(tmp_path, monkeypatch):
    """Return the folder of a dataset's snapshot in a local cache, with huggingface_hub offline."""
    from huggingface_hub import constants

    commit = "0123456789abcdef" * 2 + "01234567"
    folder = tmp_path / "hub" / "datasets--org--name"
    (folder / "refs").mkdir(parents=True)
    (folder / "refs" / "main").write_text(commit)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr(constants, "HF_HOME", str(tmp_path))
    return folder / "snapshots" / commit


def test_a_snapshot_with_missing_shards_is_not_taken_for_the_dataset(snapshot):
    touch(snapshot, "a/train-00001-of-00003.parquet", "b/train-00000-of-00001.parquet")
    with pytest.raises(InputError, match=r"lacks 2 shards of 1 subsets, first a/train-00000-of-00003"
                                         r".*org/name.*data\.subsets.*\(b, "):  # fmt: skip
        listed("hf://datasets/org/name")
    assert list(listed("hf://datasets/org/name", subsets=["b"])[0]) == ["b"]
    touch(snapshot, "a/train-00000-of-00003.parquet", "a/train-00002-of-00003.parquet")
    assert list(listed("hf://datasets/org/name")[0]) == ["a", "b"]


def test_a_snapshot_is_held_against_the_listing_of_its_commit(snapshot, tmp_path):
    touch(snapshot, "a/x.parquet", "b/y.parquet")
    assert list(listed("hf://datasets/org/name")[0]) == ["a", "b"]
    kept = tmp_path / "interlace" / "footers" / f"org--name@{snapshot.name}" / ".listing.json"
    kept.parent.mkdir(parents=True)
    whole = {"a/x.parquet": 7, "b/y.parquet": 7, "c/z.parquet": 7}
    kept.write_text(json.dumps(whole))
    with pytest.raises(InputError, match=r"lacks 1 shards of 1 subsets, first c/z\.parquet"):
        listed("hf://datasets/org/name")
    assert list(listed("hf://datasets/org/name", subsets=["a"])[0]) == ["a"]
    kept.write_text(json.dumps(whole | {"a/x.parquet": 8}))
    with pytest.raises(InputError, match=r"a/x\.parquet"):
        listed("hf://datasets/org/name", subsets=["a"])


def test_a_listing_online_is_kept_for_offline(tmp_path):
    root = write_scaled(tmp_path / "hub", {"chartqa": 40}, shard_rows=20, group_rows=20)
    with Hub(tmp_path / "hub") as hub:
        variables = {key: v for key, v in os.environ.items() if not key.startswith("HF_")}
        code = LIST_TWELVE_TIMES.replace("range(12)", "range(1)")
        subprocess.run(
            [sys.executable, "-c", code, f"hf://datasets/{REPO}"],
            env=variables | {"HF_ENDPOINT": hub.url, "HF_HOME": str(tmp_path / "home")},
            check=True,
        )
    (kept,) = (tmp_path / "home").rglob(".listing.json")
    found = json.loads(kept.read_text())
    assert found == {
        p.relative_to(root).as_posix(): p.stat().st_size for p in Path(root).rglob("*.parquet")
    }


@pytest.mark.parametrize("name", ["samples.json", "manifest.parquet"])
def test_a_subset_named_as_a_file_of_the_sample_is_refused_before_anything_is_read(tmp_path, name):
    touch(tmp_path, f"{name}/0.parquet", "b/0.parquet")
    with pytest.raises(
        InputError, match=rf"subset '{name}': a file of the sample .* data\.subsets"
    ):
        listed(tmp_path)
    assert list(listed(tmp_path, subsets=["b"])[0]) == ["b"]


@pytest.mark.parametrize("name", [b"s\xff/0.parquet", b"s/\xff.parquet", b"\xff.parquet"])
def test_a_name_that_is_not_utf8_is_refused_in_one_line_that_can_be_printed(tmp_path, name):
    touch(tmp_path, "b/0.parquet", os.fsdecode(name))
    with pytest.raises(InputError, match=r"udcff.*not UTF-8.*data\.subsets") as caught:
        listed(tmp_path)
    assert "\n" not in str(caught.value)
    str(caught.value).encode()
    assert list(listed(tmp_path, subsets=["b"])[0]) == ["b"]
