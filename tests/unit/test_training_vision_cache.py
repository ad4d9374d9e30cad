"""Vision features once for all variants: the same logits, resumable, refused for anything else."""

import errno
import io
import json
import re
import shutil
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file

from interlace.data.chat import load_records
from interlace.data.collate import EncodeError, encode
from interlace.data.images import ImageDecodeError
from interlace.decoder.load import load_processor
from interlace.errors import InputError
from interlace.io import claimed, read_json
from interlace.training import vision_cache
from interlace.training.vision_cache import cache_vision
from interlace.training.vision_store import VisionStore
from interlace.training.vision_tower import (
    tower_features,
    without_pixels,
)
from tests.tiny import make_tiny_checkpoint, make_tiny_samples
from tests.unit.vision_stores import (
    KEYS,
    SETTINGS,
    make_store,
    opened,
    small_chunks,
    stored_samples,
)


@pytest.fixture(scope="module", autouse=True)
def small():
    with small_chunks():
        yield


@pytest.fixture(scope="module")
def given(tmp_path_factory):
    return make_store(tmp_path_factory.mktemp("vision"))


def test_bfloat16_and_image_sizes_are_those_asked_for(given, tmp_path):
    settings = {**SETTINGS, "precision": "bfloat16", "min_pixels": 1024, "max_pixels": 4096}
    cache_vision(given / "base", given / "samples", tmp_path / "vision", settings, **KEYS)
    sizes = {"min_pixels": 1024, "max_pixels": 4096}
    store = opened(given, tmp_path / "vision", dtype="bfloat16", **sizes)
    full = opened(given)
    records = load_records(given / "samples")
    pictured = [name for name in records.ids if len(store.grids(name))]
    assert all(store.features(name).dtype == torch.bfloat16 for name in pictured)
    assert max(grid.prod() for name in pictured for grid in store.grids(name)) == 4096 // 16**2
    assert max(grid.prod() for name in pictured for grid in full.grids(name)) > 4096 // 16**2


def files(folder):
    """Everything but the times: what was computed, byte by byte."""
    found = {path.name: path.read_bytes() for path in folder.iterdir() if path.suffix != ".json"}
    record = read_json(folder / "vision.json")
    return found, {k: v for k, v in record.items() if k not in ("seconds", "provenance")}


class Killed(BaseException):
    """What no handler catches."""


def killed_after(patch, num_chunks):
    """Let the process die while it writes chunk number `num_chunks`."""
    write, count = Path.write_bytes, iter(range(100))

    def write_bytes(path, data):
        if next(count) == num_chunks:
            write(path, data[:100])
            raise Killed
        write(path, data)

    patch.setattr(Path, "write_bytes", write_bytes)


@pytest.mark.parametrize("chunks", [0, 2, 4])
def test_a_killed_run_goes_on_and_makes_the_same_files(given, tmp_path, capsys, chunks):
    arguments = (given / "base", given / "samples", tmp_path / "vision", SETTINGS)
    with pytest.MonkeyPatch.context() as patch, pytest.raises(Killed):
        killed_after(patch, chunks)
        cache_vision(*arguments, **KEYS)
    assert not (tmp_path / "vision").exists(), "what is half made is not there"
    capsys.readouterr()
    cache_vision(*arguments, **KEYS)
    told = capsys.readouterr().out
    assert (f"{chunks} of 5 chunks are there" in told) == (chunks > 0)
    assert files(tmp_path / "vision") == files(given / "vision")
    assert [path.name for path in tmp_path.iterdir()] == ["vision"]


def test_workers_make_the_same_files(given, tmp_path):
    settings = {**SETTINGS, "workers": 2}
    cache_vision(given / "base", given / "samples", tmp_path / "vision", settings, **KEYS)
    assert files(tmp_path / "vision") == files(given / "vision")


def test_a_torn_chunk_is_made_again_and_a_store_with_one_refused(given, tmp_path, capsys):
    shutil.copytree(given / "vision", tmp_path / "vision")
    chunk = tmp_path / "vision" / "chunk000001.safetensors"
    whole = chunk.read_bytes()
    for torn in (whole[: len(whole) // 2], b""):
        chunk.write_bytes(torn)
        with pytest.raises(InputError, match=r"chunk000001.*not whole.*delete .*vision"):
            VisionStore(tmp_path / "vision")
    chunk.unlink()
    with pytest.raises(InputError, match="not whole"):
        VisionStore(tmp_path / "vision")

    arguments = (given / "base", given / "samples", tmp_path / "again", SETTINGS)
    with pytest.MonkeyPatch.context() as patch, pytest.raises(Killed):
        killed_after(patch, 3)
        cache_vision(*arguments, **KEYS)
    (chunk,) = tmp_path.glob(".again-*/chunk000001.safetensors")
    chunk.write_bytes(whole[: len(whole) // 2])
    cache_vision(*arguments, **KEYS)
    assert "chunk000001.safetensors is torn and made again" in capsys.readouterr().out
    assert files(tmp_path / "again") == files(given / "vision")


def test_features_whose_bytes_changed_are_refused_by_name(given, tmp_path):
    """At the same size, so that nothing but the digest tells."""
    shutil.copytree(given / "vision", tmp_path / "vision")
    for path in (tmp_path / "vision").glob("chunk*.safetensors"):
        data = bytearray(path.read_bytes())
        if len(data) > 4096:
            data[-1] ^= 1
        path.write_bytes(data)
    store, changed = VisionStore(tmp_path / "vision"), []
    for name in load_records(given / "samples").ids:
        try:
            store.features(name)
        except InputError as error:
            changed.append(f"the features of sample {name} are not those" in str(error))
    assert all(changed)
    assert 0 < len(changed) < len(store.record["chunks"]) + 1


def test_other_settings_do_not_go_on_from_these(given, tmp_path, capsys):
    arguments = (given / "base", given / "samples", tmp_path / "vision")
    with pytest.MonkeyPatch.context() as patch, pytest.raises(Killed):
        killed_after(patch, 3)
        cache_vision(*arguments, SETTINGS, **KEYS)
    cache_vision(*arguments, {**SETTINGS, "max_pixels": 4096}, **KEYS)
    told = capsys.readouterr().out
    assert "features of other settings" in told
    assert "going on" not in told
    assert opened(given, tmp_path / "vision", max_pixels=4096).record["tokens"] > 0


def test_other_weights_pixels_formats_and_samples_are_refused(given, tmp_path):
    vision = given / "vision"
    make_tiny_checkpoint(tmp_path / "other", tied=False, seed=1)
    with pytest.raises(InputError, match=r"another vision tower \(\w+, not \w+\); delete .*vision"):
        opened(given, vision, base=tmp_path / "other")
    with pytest.raises(InputError, match=r"images of other settings \(size .*3000.*\); delete"):
        opened(given, vision, max_pixels=3000)
    with pytest.raises(InputError, match=r"another number format \(float32, not bfloat16\)"):
        opened(given, vision, dtype="bfloat16")
    make_tiny_samples(tmp_path / "others", seed=1)
    assert load_records(tmp_path / "others").ids == load_records(given / "samples").ids
    with pytest.raises(InputError, match="other samples"):
        opened(given, vision, samples=tmp_path / "others")
    make_tiny_samples(tmp_path / "fewer", rows=5)
    with pytest.raises(InputError, match="other samples"):
        opened(given, vision, samples=tmp_path / "fewer")
    config = json.loads((given / "base" / "config.json").read_text())
    shutil.copytree(given / "base", tmp_path / "reordered")
    config["vision_config"]["deepstack_visual_indexes"] = [0, 2, 1]
    (tmp_path / "reordered" / "config.json").write_text(json.dumps(config))
    with pytest.raises(InputError, match="built otherwise"):
        opened(given, vision, base=tmp_path / "reordered")


def test_the_same_weights_in_other_files_are_accepted(given, tmp_path):
    shutil.copytree(given / "base", tmp_path / "copy", copy_function=shutil.copyfile)
    path = tmp_path / "copy" / "model.safetensors"
    weights = load_file(path)
    # The decoder is another variant's, the vision tower is not.
    decoder = next(name for name in weights if "language_model.layers" in name)
    save_file({**weights, decoder: weights[decoder] + 1}, path, {"format": "pt"})
    opened(given, base=tmp_path / "copy")
    tower = next(name for name in weights if "visual" in name)
    save_file({**weights, tower: weights[tower] + 1}, path, {"format": "pt"})
    with pytest.raises(InputError, match="another vision tower"):
        opened(given, base=tmp_path / "copy")


def test_a_disk_that_is_too_small_is_said_before_the_start(given, tmp_path, monkeypatch, capsys):
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage._replace(free=10_000))
    arguments = (given / "base", given / "samples", tmp_path / "vision", SETTINGS)
    with pytest.raises(InputError, match=r"need about .* and 10\.0 kB are free.*levers\.vision"):
        cache_vision(*arguments, **KEYS)
    assert not (tmp_path / "vision").exists()
    told = capsys.readouterr().out
    assert "about" in told
    record = read_json(given / "vision" / "vision.json")
    estimate = float(told.split("about ")[1].split(" kB")[0]) * 1000
    # All samples are among those that the estimate is made of; each file has a header.
    assert estimate == pytest.approx(record["tokens"] * 4 * 32 * 4, rel=0.01)
    assert estimate < record["bytes"]


def test_a_disk_that_fills_up_keeps_whole_chunks(given, tmp_path, monkeypatch):
    usage, answers = shutil.disk_usage(tmp_path), iter([10**9, 10**9, 10**9, 1000])
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage._replace(free=next(answers)))
    arguments = (given / "base", given / "samples", tmp_path / "vision", SETTINGS)
    with pytest.raises(InputError, match=r"1\.0 kB are free and chunk000002.*goes on here"):
        cache_vision(*arguments, **KEYS)
    monkeypatch.undo()
    assert len(list(tmp_path.glob(".vision-*/chunk*.safetensors"))) == 2


@pytest.fixture(scope="module")
def spoilt(tmp_path_factory, given):
    """Samples of which one image does not decode and one has a shape that is refused."""
    root = tmp_path_factory.mktemp("spoilt")
    shutil.copytree(given / "samples", root / "samples")
    long = io.BytesIO()
    Image.new("RGB", (4100, 10)).save(long, "PNG")
    (path,) = (root / "samples" / "tiny_vqa").glob("*00000-of-*")
    table = pq.read_table(path)
    rows = table.to_pylist()
    for row, data in ((0, b"no image"), (1, long.getvalue())):
        rows[row]["images"] = [{"bytes": data, "path": None}]
    pq.write_table(pa.Table.from_pylist(rows, schema=table.schema), path, row_group_size=2)
    cache_vision(given / "base", root / "samples", root / "vision", SETTINGS, **KEYS)
    return root, [row["id"] for row in rows[:2]]


def test_samples_that_cannot_be_processed_are_named_and_fail_as_ever(given, spoilt):
    root, (torn, long) = spoilt
    store = opened(given, root / "vision", samples=root / "samples")
    reasons = {entry["id"]: entry["reason"] for entry in store.left_out}
    assert reasons == {torn: "dropped_undecodable", long: "dropped_unprocessable"}
    assert torn not in store
    with pytest.raises(InputError, match=f"holds no sample {long}"):
        store.features(long)
    processor = load_processor(given / "base")
    stored = stored_samples(root / "samples", store)
    with pytest.raises(ImageDecodeError):
        stored[stored.ids.index(torn)]
    with pytest.raises(EncodeError) as live:
        encode(load_records(root / "samples")[stored.ids.index(long)], processor)
    with pytest.raises(EncodeError) as light:
        encode(stored[stored.ids.index(long)], without_pixels(processor))
    assert str(live.value) == str(light.value)


def test_where_no_image_can_be_processed_there_is_no_store(given, tmp_path):
    make_tiny_samples(tmp_path / "samples", {"a": "image"}, rows=2)
    for path in (tmp_path / "samples" / "a").iterdir():
        table = pq.read_table(path)
        rows = [row | {"images": [{"bytes": b"x", "path": None}]} for row in table.to_pylist()]
        pq.write_table(pa.Table.from_pylist(rows, schema=table.schema), path)
    with pytest.raises(InputError, match="no image of 2 samples can be processed"):
        cache_vision(given / "base", tmp_path / "samples", tmp_path / "vision", SETTINGS, **KEYS)
    assert not (tmp_path / "vision").exists()


def test_images_of_other_sizes_are_refused(given):
    store = opened(given)
    record = next(r for r in load_records(given / "samples") if r.images)
    sample = encode(record, load_processor(given / "base"))
    text = {key: value for key, value in sample.items() if "pixel" not in key and "grid" not in key}
    other = {**sample, "image_grid_thw": sample["image_grid_thw"] + 2}
    for wrong in (text, other):
        with pytest.raises(
            InputError, match=re.escape(f"sample {record.id} has images of other sizes")
        ):
            store.add_features(record.id, wrong)


def test_features_that_are_not_finite_are_refused_by_name(given, tmp_path, monkeypatch):
    store, patches, last = opened(given), 0, None
    for name in load_records(given / "samples").ids[5:10]:  # the first are text
        patches += int(store.grids(name).prod(1).sum())
        if patches > vision_cache.PATCHES:
            break
        last = name if len(store.grids(name)) else last

    def spoilt_at_the_end(*arguments):
        found = tower_features(*arguments)
        found[-1, 2, 3] = float("nan")
        return found

    monkeypatch.setattr(vision_cache, "tower_features", spoilt_at_the_end)
    with pytest.raises(InputError, match=re.escape(f"features of sample {last} are not finite")):
        cache_vision(given / "base", given / "samples", tmp_path / "vision", SETTINGS, **KEYS)
    assert not (tmp_path / "vision").exists()


def test_samples_of_text_only_have_an_empty_store(given, tmp_path):
    make_tiny_samples(tmp_path / "samples", {"a": "text"}, rows=2)
    cache_vision(given / "base", tmp_path / "samples", tmp_path / "vision", SETTINGS, **KEYS)
    store = opened(given, tmp_path / "vision", samples=tmp_path / "samples")
    assert store.record["tokens"] == 0
    stored = stored_samples(tmp_path / "samples", store)
    sample = encode(stored[0], without_pixels(load_processor(given / "base")))
    assert store.add_features(stored.ids[0], sample) == sample


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_features_on_a_gpu(given, tmp_path):
    settings = {**SETTINGS, "device": "cuda"}
    cache_vision(given / "base", given / "samples", tmp_path / "vision", settings, **KEYS)
    store, live = opened(given, tmp_path / "vision"), opened(given)
    for name in load_records(given / "samples").ids:
        torch.testing.assert_close(store.features(name), live.features(name), rtol=1e-3, atol=1e-3)


def test_no_two_processes_make_one_store(given, tmp_path, monkeypatch):
    monkeypatch.setattr(vision_cache, "load_processor", None)
    with (
        claimed(tmp_path / "vision"),
        pytest.raises(InputError, match="is at work on it"),
    ):
        cache_vision(given / "base", given / "samples", tmp_path / "vision", SETTINGS, **KEYS)


def test_a_disk_that_gets_full_is_one_line(given, tmp_path, monkeypatch):
    def full(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(vision_cache, "load_processor", full)
    with pytest.raises(
        InputError, match=r"vision: the disk is full .*goes on after its last chunk"
    ):
        cache_vision(given / "base", given / "samples", tmp_path / "vision", SETTINGS, **KEYS)
