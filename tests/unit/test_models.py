"""Base models come from a folder or a hub and say where from."""

import pytest
from huggingface_hub.errors import HFValidationError, HTTPError

from interlace.errors import InputError
from interlace.io import read_json
from interlace.models import fetch_base_model


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
    revision = read_json(tmp_path / "base" / "source.json")["resolved"]
    (origin / "model.safetensors").write_bytes(b"other weights")
    fetch_base_model("local", str(origin), None, tmp_path / "base")
    record = read_json(tmp_path / "base" / "source.json")
    assert record["resolved"] != revision
    assert record["source"] == "local"


@pytest.mark.parametrize("source", ["local", "hub"])
def test_a_folder_without_safetensors_is_refused(source, tmp_path, monkeypatch):
    (tmp_path / "mine").mkdir()
    monkeypatch.setattr("huggingface_hub.snapshot_download", lambda *_, **__: tmp_path / "mine")
    with pytest.raises(InputError, match=r"no \*\.safetensors"):
        fetch_base_model(source, str(tmp_path / "mine"), None, tmp_path / "base")


def test_a_hub_model_that_is_not_there_is_one_line(tmp_path, monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    with pytest.raises(InputError) as raised:
        fetch_base_model("hub", "org/absent", None, tmp_path / "base")
    assert "org/absent" in str(raised.value)
    assert "\n" not in str(raised.value)
    assert not (tmp_path / "base").exists()


@pytest.mark.parametrize("error", [HTTPError(""), HFValidationError("a/b/c"), OSError()])
def test_what_the_hub_raises_is_one_line(error, tmp_path, monkeypatch):
    def refused(*_, **__):
        raise error

    monkeypatch.setattr("huggingface_hub.snapshot_download", refused)
    with pytest.raises(InputError, match=rf"fetched from the hub \({type(error).__name__}"):
        fetch_base_model("hub", "org/model", None, tmp_path / "base")
