"""A store of vision features of the tiny model, made in small chunks and batches."""

import contextlib
from pathlib import Path

import pytest

from interlace.data.chat import load_records
from interlace.decoder.load import load_processor
from interlace.training import vision_cache
from interlace.training.vision_cache import cache_vision
from interlace.training.vision_store import StoredSamples, VisionStore
from tests.tiny import make_tiny_checkpoint, make_tiny_samples

SETTINGS = {"precision": "float32", "min_pixels": None, "max_pixels": None, "workers": 0}
KEYS = {"model": "tiny"}
CHUNK = 5


def make_store(root: Path) -> Path:
    """Write `base`, `samples` and their store `vision` below `root`; return `root`."""
    make_tiny_checkpoint(root / "base", tied=False)
    make_tiny_samples(root / "samples")
    with small_chunks():
        cache_vision(root / "base", root / "samples", root / "vision", SETTINGS, **KEYS)
    return root


@contextlib.contextmanager
def small_chunks():
    """Let chunks have five samples and batches a few images while in the block."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(vision_cache, "CHUNK", CHUNK)
        patch.setattr(vision_cache, "PATCHES", 150)
        yield


def opened(root, folder="vision", base="base", samples="samples", dtype="float32", **pixels):
    """Open a store below `root` with its base and samples, or others."""
    processor = load_processor(root / base, pixels.get("min_pixels"), pixels.get("max_pixels"))
    ids = load_records(root / samples).ids
    return VisionStore.open(root / folder, root / base, processor, dtype, root / samples, ids)


def stored_samples(samples, store):
    """Return the samples of a folder without their images."""
    return StoredSamples(samples, load_records(samples).ids, store)
