"""Chunks, shards and resumed runs: the same file bit for bit; packs and errors."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from interlace.data.chat import load_records
from interlace.data.collate import encode, encode_prompt
from interlace.decoder.layers import decoder_layers
from interlace.decoder.load import load_model, load_processor
from interlace.errors import InputError
from interlace.scoring import chunks, shards
from interlace.scoring.chunks import merge_shards
from interlace.scoring.shards import score_shard, score_windows
from interlace.scoring.similarity import window_sums
from interlace.scoring.store import read_windows, window_list
from interlace.stamps import weights_record
from tests.tiny import make_tiny_checkpoint, make_tiny_samples
from tests.unit.sleb_reference import other_texts

SETTINGS = {"batch_tokens": 400, "max_length": 256, "min_pixels": None, "max_pixels": None}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    import pyarrow as pa
    import pyarrow.parquet as pq

    folder = tmp_path_factory.mktemp("shards")
    make_tiny_samples(folder / "samples", rows=5)
    manifest = pq.read_table(folder / "samples" / "manifest.parquet").to_pylist()
    for row in manifest:  # all but one
        row["calibration"] = row["id"] != manifest[7]["id"]
    pq.write_table(pa.Table.from_pylist(manifest), folder / "samples" / "manifest.parquet")
    make_tiny_checkpoint(folder / "model", layers=7)
    return folder


@pytest.fixture(autouse=True)
def small_chunks(monkeypatch):
    monkeypatch.setattr(shards, "CHUNK", 4)
    monkeypatch.setattr(chunks, "CHUNK", 4)


def score(folder, out, num_shards=1, settings=SETTINGS, **more):
    """Score in shards, last one first, and merge; return the bytes of windows.parquet."""
    files = [out / f"{shard}.parquet" for shard in range(num_shards)]
    for shard in reversed(range(num_shards)):
        score_shard(
            folder / "model", folder / "samples", files[shard], settings, model_key="m",
            parts=out / "parts", shard=shard, num_shards=num_shards, **more,
        )  # fmt: skip
    merge_shards(files, folder / "samples", out, parts=out / "parts", seed=4)
    assert not (out / "parts").exists()
    return (out / "windows.parquet").read_bytes()


def test_the_file_holds_every_sample_and_the_packs_its_means(folder, tmp_path):
    score(folder, tmp_path)
    windows = read_windows(tmp_path / "windows.parquet")
    records = load_records(folder / "samples", calibration_only=True)
    assert windows.ids == records.ids
    assert len(windows.ids) == 19
    assert windows.subsets == records.subsets
    assert windows.windows == window_list(7, (1, 2, 3))
    processor = load_processor(folder / "model")
    encoded = [encode(record, processor, 256) for record in records]
    sums, counts, angles = window_sums(load_model(folder / "model"), encoded, 3)
    np.testing.assert_array_equal(windows.counts, counts)
    np.testing.assert_allclose(windows.sums, sums, rtol=0, atol=1e-4)
    np.testing.assert_allclose(windows.angles, angles, rtol=0, atol=1e-6)
    info = windows.info
    assert (info["model"], info["num_layers"], info["text"]) == ("m", 7, "conversation")
    assert info["counts_known"] is True
    assert weights_record(folder / "model").items() <= info.items()
    assert info["provenance"]["seed"] == 4
    for size in (1, 2, 3):
        body = json.loads((tmp_path / f"pack{size}.json").read_text())
        assert (body["model"], body["num_layers"], body["num_samples"]) == ("m", 7, 19)
        assert body["num_tokens"] == dict(zip(("text", "visual"), counts.sum(0), strict=True))
        assert [window["start"] for window in body["windows"]] == list(range(8 - size))
        for window in body["windows"]:
            of_window = sums[:, windows.windows.index((size, window["start"]))]
            means = {
                "token_mean": of_window.sum() / counts.sum(),
                "sample_mean": (of_window.sum(1) / counts.sum(1)).mean(),
                "text_mean": of_window[:, 0].sum() / counts[:, 0].sum(),
                "visual_mean": of_window[:, 1].sum() / counts[:, 1].sum(),
            }
            for key, value in means.items():
                assert window[key] == pytest.approx(value, abs=1e-6), (size, key)


def test_shards_workers_and_resumed_runs_give_the_same_bytes(folder, tmp_path, monkeypatch):
    plain = score(folder, tmp_path / "plain")
    assert score(folder, tmp_path / "three", num_shards=3) == plain
    assert score(folder, tmp_path / "many", num_shards=7) == plain  # two of them have no chunk
    assert score(folder, tmp_path / "workers", workers=2) == plain
    # Interrupted in the third of five chunks, then taken up again by other shards.
    ran = []
    real = shards.run_batches

    def interrupted(*args):
        if len(ran) == 2:
            raise KeyboardInterrupt
        ran.append(real(*args))
        return ran[-1]

    monkeypatch.setattr(shards, "run_batches", interrupted)
    out = tmp_path / "resumed"
    with pytest.raises(KeyboardInterrupt):
        score(folder, out)
    assert not (out / "0.parquet").exists()
    assert len(list(out.glob("parts/*/chunk*.parquet"))) == 2
    ran = [None] * 10
    monkeypatch.setattr(shards, "run_batches", lambda *args: ran.append(0) or real(*args))
    assert score(folder, out, num_shards=2) == plain
    assert len(ran) == 10 + 3


def test_a_killed_process_leaves_whole_chunks_only(folder, tmp_path):
    code = f"""
import os, signal, pathlib
from interlace.scoring import chunks, shards, store
chunks.CHUNK = shards.CHUNK = 4
real, calls = store.pq.write_table, []
def torn(table, path, **options):
    real(table, path, **options)
    calls.append(path)
    if len(calls) == 3:
        data = pathlib.Path(path).read_bytes()
        pathlib.Path(path).write_bytes(data[: len(data) // 2])
        os.kill(os.getpid(), signal.SIGKILL)
store.pq.write_table = torn
shards.score_shard({str(folder / "model")!r}, {str(folder / "samples")!r},
    {str(tmp_path / "0.parquet")!r}, {SETTINGS!r}, model_key="m", parts={str(tmp_path / "parts")!r})
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, check=False)
    assert done.returncode == -9, done.stderr
    found = sorted(path.name for path in tmp_path.glob("parts/*/*"))
    assert found == [".chunk000002.parquet.partial", "chunk000000.parquet", "chunk000001.parquet"]
    assert score(folder, tmp_path) == score(folder, tmp_path / "plain")


def test_parts_of_other_inputs_are_not_used(folder, tmp_path):
    def run(settings, samples=folder / "samples"):
        score_shard(
            folder / "model", samples, tmp_path / "0.parquet", SETTINGS | settings,
            model_key="m", parts=tmp_path / "parts",
        )  # fmt: skip
        return len(list((tmp_path / "parts").iterdir()))

    assert run({}) == 1
    assert run({}) == 1
    assert run({"text": "prompt"}) == 2
    assert run({"max_window": 5}) == 3
    make_tiny_samples(tmp_path / "redrawn", rows=5, seed=1)
    assert run({}, tmp_path / "redrawn") == 4


def test_other_texts_under_the_same_ids_are_scored_afresh(folder, tmp_path, monkeypatch):
    samples = tmp_path / "samples"
    shutil.copytree(folder / "samples", samples)

    def run(name):
        score_windows(
            folder / "model", samples, tmp_path / name, SETTINGS, model_key="m", seed=0
        )  # fmt: skip
        return read_windows(tmp_path / name / "windows.parquet")

    before = run("before")
    ran, real = [], shards.run_batches

    def killed(*args):
        if len(ran) == 3:
            raise KeyboardInterrupt
        ran.append(real(*args))
        return ran[-1]

    with monkeypatch.context() as patch:
        patch.setattr(shards, "run_batches", killed)
        with pytest.raises(KeyboardInterrupt):
            run("resumed")
    assert len(list((tmp_path / "resumed").glob("parts/*/chunk*.parquet"))) == 3
    other_texts(samples)
    resumed, fresh = run("resumed"), run("fresh")
    assert resumed.ids == before.ids
    np.testing.assert_array_equal(resumed.sums, fresh.sums)
    assert (resumed.sums != before.sums).any(axis=(1, 2)).all()


def test_the_prompt_alone_ends_with_the_generation_prompt(folder, tmp_path):
    processor = load_processor(folder / "model")
    for record in load_records(folder / "samples"):
        text = processor.tokenizer.decode(encode_prompt(record, processor)["input_ids"][0])
        assert text.endswith("<|im_start|>assistant\n")
        assert text.count("<|im_start|>") == 2
        assert record.turns[0]["user"] in text
        assert text.count("<|vision_start|>") == len(record.images)
    score(folder, tmp_path, settings=SETTINGS | {"text": "prompt"})
    windows = read_windows(tmp_path / "windows.parquet")
    assert windows.info["text"] == "prompt"
    first = load_records(folder / "samples", calibration_only=True)[0]
    tokens = encode_prompt(first, processor)["input_ids"].shape[1]
    assert windows.counts[0].sum() == tokens < encode(first, processor)["input_ids"].shape[1]


def test_max_window_reaches_further(folder, tmp_path):
    score(folder, tmp_path, settings=SETTINGS | {"max_window": 7})
    assert read_windows(tmp_path / "windows.parquet").windows == window_list(7, range(1, 8))
    for wrong in (2, 8):
        with pytest.raises(InputError, match=rf"scoring\.max_window: {wrong}; with 7 layers"):
            score(folder, tmp_path / "none", settings=SETTINGS | {"max_window": wrong})


def test_samples_that_are_too_long_are_counted(folder, tmp_path, capsys):
    records = load_records(folder / "samples", calibration_only=True)
    processor = load_processor(folder / "model")
    lengths = [encode_prompt(record, processor)["input_ids"].shape[1] for record in records]
    limit = sorted(lengths)[9]
    score(folder, tmp_path, settings=SETTINGS | {"max_length": limit, "text": "prompt"})
    windows = read_windows(tmp_path / "windows.parquet")
    kept = [name for name, n in zip(records.ids, lengths, strict=True) if n <= limit]
    assert windows.ids == kept
    out = {entry["id"]: entry["reason"] for entry in windows.info["left_out"]}
    assert out == {name: "dropped_too_long" for name in records.ids if name not in kept}
    said = capsys.readouterr().err
    assert "reading samples: 19/19" in said
    assert f"{len(out)} calibration samples left out" in said


def test_too_short_a_max_length_is_one_clear_error(folder, tmp_path):
    with pytest.raises(InputError, match=r"scoring\.max_length: none of 19 calibration samples"):
        score_windows(
            folder / "model", folder / "samples", tmp_path / "none", SETTINGS | {"max_length": 3},
            model_key="m", seed=0,
        )  # fmt: skip
    assert not (tmp_path / "none" / "windows.parquet").exists()


def test_shards_that_are_not_one_run_are_refused(folder, tmp_path):
    files = [tmp_path / "0.parquet", tmp_path / "1.parquet"]
    for shard, tokens in ((0, 400), (1, 300)):
        score_shard(
            folder / "model", folder / "samples", files[shard], SETTINGS | {"batch_tokens": tokens},
            model_key="m", parts=tmp_path / "parts", shard=shard, num_shards=2,
        )  # fmt: skip
    for given in (files, files[:1], [files[0], files[0]]):
        with pytest.raises(InputError, match="the shards are not one whole run"):
            merge_shards(given, folder / "samples", tmp_path, parts=tmp_path / "parts", seed=0)
    assert not (tmp_path / "windows.parquet").exists()


def test_states_that_are_not_finite_are_refused(folder, tmp_path):
    model = load_model(folder / "model")
    with torch.no_grad():
        decoder_layers(model)[3].mlp.down_proj.weight.fill_(float("nan"))
    model.save_pretrained(tmp_path / "broken")
    load_processor(folder / "model").save_pretrained(tmp_path / "broken")
    with pytest.raises(InputError, match=r"broken: hidden states of sample .* are not finite"):
        score_windows(
            tmp_path / "broken", folder / "samples", tmp_path / "none", SETTINGS,
            model_key="m", seed=0,
        )  # fmt: skip


def test_the_merge_needs_no_torch(tmp_path):
    (tmp_path / "torch.py").write_text("raise ImportError('torch was imported')")
    source = Path(__file__).resolve().parents[2] / "src"
    code = "import interlace.scoring.chunks, interlace.scoring.released"
    done = subprocess.run(
        [sys.executable, "-c", code],
        env={"PYTHONPATH": f"{tmp_path}:{source}"}, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
