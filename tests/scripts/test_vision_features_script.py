"""The script of the vision features: what it is handed reaches the package."""

from interlace.decoder.load import load_processor
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
    processor = load_processor(tmp_path / "base", None, 4096)
    store = VisionStore.open(
        tmp_path / "vision", tmp_path / "base", processor, "bfloat16", tmp_path / "samples"
    )
    assert store.record["tokens"] > 0
    done, log = run(tmp_path, tmp_path / "again", max_pixels=1)
    assert done.returncode == 1
    assert done.stderr.count("\n") == 1
    assert "max_pixels 1" in done.stderr
    assert not (tmp_path / "again").exists()
