"""Files are whole or absent; digests tell content, not layout."""

import pytest

from interlace.errors import InputError
from interlace.io import atomic_path, code_digest, digest, folder_digest, read_json, write_json


def test_a_failed_write_leaves_the_old_file(tmp_path):
    target = tmp_path / "a.json"
    write_json(target, {"x": 1})
    with pytest.raises(RuntimeError), atomic_path(target) as partial:
        partial.write_text("{")
        raise RuntimeError
    assert read_json(target) == {"x": 1}


def test_a_failed_folder_is_not_there(tmp_path):
    target = tmp_path / "folder"
    with pytest.raises(RuntimeError), atomic_path(target, directory=True) as partial:
        (partial / "half").write_text("x")
        raise RuntimeError
    assert not target.exists()
    with atomic_path(target, directory=True) as partial:
        assert not (partial / "half").exists()
        (partial / "whole").write_text("x")
    assert [p.name for p in target.iterdir()] == ["whole"]


def test_nan_is_refused(tmp_path):
    with pytest.raises(ValueError):
        write_json(tmp_path / "a.json", {"x": float("nan")})


def test_a_torn_json_is_named(tmp_path):
    torn = tmp_path / "torn.json"
    torn.write_text('{"x": ')
    with pytest.raises(InputError, match=r"torn.json: not valid JSON"):
        read_json(torn)
    with pytest.raises(InputError, match="no such file"):
        read_json(tmp_path / "absent.json")


def test_digests(tmp_path):
    assert digest({"a": 1, "b": 2}) == digest({"b": 2, "a": 1})
    assert digest({"a": 1}) != digest({"a": 2})
    (tmp_path / "x.py").write_text("a = 1\n")
    before, all_before = code_digest(tmp_path), folder_digest(tmp_path)
    (tmp_path / "x.py").write_text("# a comment\na  =  1\n")
    assert code_digest(tmp_path) == before
    assert folder_digest(tmp_path) != all_before
    (tmp_path / "x.py").write_text("a = 2\n")
    assert code_digest(tmp_path) != before
