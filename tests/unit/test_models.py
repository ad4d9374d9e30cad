"""Base models come from a folder or a hub and say where from."""

import pytest

from interlace.errors import InputError
from interlace.io import read_json
from interlace.models import fetch_base_model, model_revision


def checkpoint(folder):
    folder.mkdir()
    (folder / "config.json").write_text("{}")
    (folder / "model.safetensors").write_bytes(b"weights")
    (folder / "training_args.bin").write_bytes(b"pickle")
    return folder


def test_a_local_checkpoint_is_linked_not_copied(tmp_path):
    origin = checkpoint(tmp_path / "mine")
    fetch_base_model("local", str(origin), None, tmp_path / "base")
    assert (tmp_path / "base" / "model.safetensors").is_symlink()
    assert not (tmp_path / "base" / "training_args.bin").exists()
    revision = model_revision(tmp_path / "base")
    (origin / "model.safetensors").write_bytes(b"other weights")
    fetch_base_model("local", str(origin), None, tmp_path / "base")
    assert model_revision(tmp_path / "base") != revision
    assert read_json(tmp_path / "base" / "source.json")["source"] == "local"


def test_a_folder_without_safetensors_is_refused(tmp_path):
    (tmp_path / "mine").mkdir()
    with pytest.raises(InputError, match=r"no \*\.safetensors"):
        fetch_base_model("local", str(tmp_path / "mine"), None, tmp_path / "base")


def test_a_hub_model_that_is_not_there_is_one_line(tmp_path, monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    with pytest.raises(InputError) as raised:
        fetch_base_model("hub", "org/absent", None, tmp_path / "base")
    assert "org/absent" in str(raised.value)
    assert "\n" not in str(raised.value)
    assert not (tmp_path / "base").exists()
