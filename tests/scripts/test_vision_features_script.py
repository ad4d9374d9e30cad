"""The script of the vision features: what it is handed reaches the package."""

import pytest

from interlace.errors import InputError
from interlace.training.vision_cache import cache_vision
from interlace.training.vision_store import VisionStore
from tests.scripts.test_scripts import run_script
from tests.tiny import make_tiny_checkpoint, make_tiny_samples


def run(folder, out, **settings):
    return run_script(
        "vision_features", folder / "vision.log",
        input={"base": str(folder / "base"), "samples": str(folder / "samples")},
        output=[str(out)],
        wildcards={"model": "tiny"},
        params={"settings": {"precision": "bfloat16", "min_pixels": None, **settings}},
        config={"finetune": {"workers": 1}},
    )  # fmt: skip


def test_a_store_and_a_mistake(tmp_path):
    make_tiny_checkpoint(tmp_path / "base")
    make_tiny_samples(tmp_path / "samples", rows=2)
    done, log = run(tmp_path, tmp_path / "vision", max_pixels=4096)
    assert done.returncode == 0, log
    assert "vision features of 8 samples" in log
    assert VisionStore(tmp_path / "vision").record["tokens"] > 0
    settings = {"precision": "bfloat16", "min_pixels": None, "max_pixels": 1, "workers": 1}
    with pytest.raises(InputError, match="max_pixels 1"):
        cache_vision(
            tmp_path / "base", tmp_path / "samples", tmp_path / "again", settings, model="tiny"
        )
    assert not (tmp_path / "again").exists()
