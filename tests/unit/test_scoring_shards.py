"""Chunks, shards and resumed runs: the same file bit for bit; packs and errors."""

import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from interlace.data.chat import load_records
from interlace.data.collate import encode, encode_prompt
from interlace.decoder.load import load_model, load_processor
from interlace.errors import InputError
from interlace.scoring import chunks, shards, store
from interlace.scoring.chunks import merge_shards
from interlace.scoring.shards import score_shard, score_windows
from interlace.scoring.similarity import window_sums
from interlace.scoring.store import read_windows, window_list
from interlace.selection.scores import read_scores
from interlace.stamps import configuration_digest, weights_record
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
        # Plans go by the same means, to the last bit.
        scores = read_scores(tmp_path / "windows.parquet", "m", 7)
        for name, means in (("token", scores.token_means), ("sample", scores.sample_means)):
            assert means[size] == [window[f"{name}_mean"] for window in body["windows"]]


@pytest.fixture(scope="module")
def plain(folder, tmp_path_factory):
    """The bytes of windows.parquet where everything was scored in one go."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(shards, "CHUNK", 4)
        patch.setattr(chunks, "CHUNK", 4)
        return score(folder, tmp_path_factory.mktemp("plain"))


@pytest.mark.parametrize("more", [{"num_shards": 7}, {"workers": 2}])  # two shards have no chunk
def test_shards_and_workers_give_the_same_bytes(folder, tmp_path, plain, more):
    assert score(folder, tmp_path, **more) == plain


def test_resumed_runs_give_the_same_bytes(folder, tmp_path, plain, monkeypatch):
    # Interrupted in the third of five chunks, then taken up again by other shards.
    ran = []
    real = shards.run_batches

    def interrupted(*args):
        if len(ran) == 2:
            raise KeyboardInterrupt
        ran.append(real(*args))
        return ran[-1]

    monkeypatch.setattr(shards, "run_batches", interrupted)
    with pytest.raises(KeyboardInterrupt):
        score(folder, tmp_path)
    assert not (tmp_path / "0.parquet").exists()
    assert len(list(tmp_path.glob("parts/*/chunk*.parquet"))) == 2
    ran = [None] * 10
    monkeypatch.setattr(shards, "run_batches", lambda *args: ran.append(0) or real(*args))
    assert score(folder, tmp_path, num_shards=2) == plain
    assert len(ran) == 10 + 3


def test_a_killed_process_leaves_whole_chunks_only(folder, tmp_path, plain, monkeypatch):
    real, calls = store.pq.write_table, []

    def torn(table, path, **options):
        real(table, path, **options)
        calls.append(path)
        if len(calls) == 3:
            data = Path(path).read_bytes()
            Path(path).write_bytes(data[: len(data) // 2])
            os.kill(os.getpid(), signal.SIGKILL)

    child = os.fork()
    if child == 0:
        try:
            monkeypatch.setattr(store.pq, "write_table", torn)
            score(folder, tmp_path)
        finally:
            os._exit(1)
    assert os.waitpid(child, 0)[1] == signal.SIGKILL
    torn_file, *whole = sorted(path.name for path in tmp_path.glob("parts/*/*"))
    assert torn_file.startswith(".chunk000002.parquet")
    assert whole == ["chunk000000.parquet", "chunk000001.parquet"]
    assert score(folder, tmp_path) == plain


def test_parts_of_other_inputs_are_not_used(folder, tmp_path):
    def run(settings, samples=folder / "samples", model=folder / "model"):
        score_shard(
            model, samples, tmp_path / "0.parquet", SETTINGS | settings,
            model_key="m", parts=tmp_path / "parts",
        )  # fmt: skip
        return len(list((tmp_path / "parts").iterdir()))

    assert run({}) == 1
    assert run({}) == 1
    assert run({"text": "prompt"}) == 2
    assert run({"max_window": 5}) == 3
    make_tiny_samples(tmp_path / "redrawn", rows=5, seed=1)
    assert run({}, tmp_path / "redrawn") == 4
    shutil.copytree(folder / "model", tmp_path / "other")
    (tmp_path / "other" / "merges.txt").write_text("a b")
    assert run({}, model=tmp_path / "other") == 5


def test_the_configuration_is_whatever_inputs_follow_from(tmp_path):
    digests = [configuration_digest(tmp_path)]
    for name in ("config.json", "chat_template.jinja", "merges.txt", "tokenizer.model"):
        (tmp_path / name).write_text(name)
        digests.append(configuration_digest(tmp_path))
    assert len(set(digests)) == 5
    (tmp_path / "README.md").write_text("a card")
    assert configuration_digest(tmp_path) == digests[-1]


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


def test_shards_that_are_not_one_run_are_refused(folder, tmp_path, plain):
    files = [tmp_path / name for name in ("0.parquet", "tokens.parquet", "window.parquet")]
    for file, changed in zip(files, ({}, {"batch_tokens": 300}, {"max_window": 5}), strict=True):
        score_shard(
            folder / "model", folder / "samples", file, SETTINGS | changed,
            model_key="m", parts=tmp_path / "parts", shard=int(bool(changed)), num_shards=2,
        )  # fmt: skip
    first, tokens, window = files
    merged = tmp_path / "merged.parquet"
    merged.write_bytes(plain)
    wrong = ([first, tokens], [first, window], [first], [first, first], [merged], [first, merged])
    for given in wrong:
        with pytest.raises(InputError, match="the shards are not one whole run"):
            merge_shards(given, folder / "samples", tmp_path, parts=tmp_path / "parts", seed=0)
    assert not (tmp_path / "windows.parquet").exists()


def test_the_sample_whose_states_are_not_finite_is_named(folder, tmp_path):
    model, processor = load_model(folder / "model"), load_processor(folder / "model")
    records = load_records(folder / "samples", calibration_only=True)
    tokens = [set(encode(records[i], processor)["input_ids"][0].tolist()) for i in range(4)]
    # The chunk is one batch, its longest sample first; a token of another one alone is broken.
    bad, token = next(
        (bad, min(own))
        for bad in (3, 2, 1)
        if (own := tokens[bad].difference(*(tokens[other] for other in range(4) if other != bad)))
    )
    with torch.no_grad():
        model.get_input_embeddings().weight[token] = float("nan")
    model.save_pretrained(tmp_path / "broken")
    processor.save_pretrained(tmp_path / "broken")
    named = rf"broken: hidden states of sample {records.ids[bad]} are not finite"
    with pytest.raises(InputError, match=named):
        score_windows(
            tmp_path / "broken", folder / "samples", tmp_path / "none",
            SETTINGS | {"batch_tokens": 4000}, model_key="m", seed=0,
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
