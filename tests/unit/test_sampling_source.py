"""Addresses and what is below them: subsets, splits, names, and one line for what is wrong."""

import fsspec
import pytest

from interlace.errors import InputError
from interlace.sampling.source import list_shards, open_source
from tests.flaky import serve


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
    assert passed_over == []
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


def test_a_commit_is_taken_at_its_word_without_asking(monkeypatch):
    import huggingface_hub

    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", False)
    commit = "0123456789abcdef" * 2 + "01234567"
    source = open_source(f"hf://datasets/org/name@{commit}/inside", retries=0)
    assert source.revision == commit
    assert source.address == f"hf://datasets/org/name@{commit}/inside"
    assert source.path("s", "t.parquet") == f"datasets/org/name@{commit}/inside/s/t.parquet"
