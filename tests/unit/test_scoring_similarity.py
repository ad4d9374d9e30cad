"""Window scores against a direct float64 computation from every layer's input and raw output."""

import json

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch

from interlace.data.chat import load_records
from interlace.data.collate import encode, pad
from interlace.data.finevision import draw_samples
from interlace.decoder.layers import BoundaryRecorder
from interlace.decoder.load import load_model, load_processor
from interlace.errors import InputError
from interlace.scoring.similarity import score_windows, window_list, window_sums
from interlace.selection.scores import read_scores
from tests.tiny import make_tiny_checkpoint, make_tiny_finevision

SETTINGS = {"batch_size": 3, "max_length": 256, "min_pixels": None, "max_pixels": None}
SIZES = (1, 2, 3, 5)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("scoring")
    make_tiny_finevision(folder / "source", rows=5)
    settings = {
        "fraction": 1.0, "min_per_subset": 1, "max_images": 3, "max_turns": 5,
        "calibration_fraction": 0.6,
    }  # fmt: skip
    draw_samples(folder / "source", folder / "samples", settings, seed=0)
    make_tiny_checkpoint(folder / "model", layers=7)
    return folder


@pytest.fixture(scope="module")
def encoded(folder):
    processor = load_processor(folder / "model")
    records = load_records(folder / "samples", calibration_only=True)
    return [(record.id, encode(record, processor)) for record in records]


@torch.inference_mode()
def oracle(model, sample):
    """Sums (W, 2) of one unpadded sample, straight from the definition, in float64."""
    sample = {key: value for key, value in sample.items() if key != "labels"}
    with BoundaryRecorder(model) as recorder:
        model.model(**sample, use_cache=False)
    before = [tensor[0].double() for tensor in recorder.inputs]
    after = [*before[1:], recorder.outputs[-1][0].double()]
    visual = sample["input_ids"][0] == model.config.image_token_id
    sums = []
    for size, start in window_list(len(before), SIZES):
        x, y = before[start], after[start + size - 1]
        cosine = (x * y).sum(-1) / (x.norm(dim=-1) * y.norm(dim=-1))
        sums.append([cosine[~visual].sum(), cosine[visual].sum()])
    return np.array(sums, dtype=float), np.array([(~visual).sum(), visual.sum()], dtype=float)


@pytest.mark.parametrize("batch_size", [1, 2, 5, 12])
def test_sums_equal_the_oracle_in_batches_of_any_size_and_order(folder, encoded, batch_size):
    model = load_model(folder / "model")
    order = np.random.default_rng(batch_size).permutation(len(encoded))
    samples = [encoded[i][1] for i in order]
    assert any("pixel_values" in s for s in samples)
    assert any("pixel_values" not in s for s in samples)
    side = "left" if batch_size == 5 else "right"
    batches = (
        pad(samples[start : start + batch_size], 0, side)
        for start in range(0, len(samples), batch_size)
    )
    sums, counts = window_sums(model, batches, SIZES)
    for i, sample in enumerate(samples):
        expected, tokens = oracle(model, sample)
        np.testing.assert_array_equal(counts[i], tokens)
        np.testing.assert_allclose(
            sums[i] / tokens.clip(1), expected / tokens.clip(1), rtol=0, atol=1e-5
        )


def test_deepstack_counts_as_part_of_the_layer_it_follows(folder, encoded):
    model = load_model(folder / "model")
    sample = next(s for _, s in encoded if "pixel_values" in s)
    with torch.inference_mode(), BoundaryRecorder(model) as recorder:
        model.model(**{k: v for k, v in sample.items() if k != "labels"}, use_cache=False)
    assert not torch.equal(recorder.outputs[0], recorder.inputs[1])
    raw = torch.cosine_similarity(recorder.inputs[0][0], recorder.outputs[0][0], dim=-1)
    visual = sample["input_ids"][0] == model.config.image_token_id
    sums, counts = window_sums(model, iter([sample]), (1,))
    text_mean, visual_mean = sums[0, 0] / counts[0]
    assert text_mean == pytest.approx(float(raw[~visual].mean()), abs=1e-6)
    assert abs(visual_mean - float(raw[visual].mean())) > 1e-3


def test_files_hold_per_sample_sums_and_means_that_plans_read(folder, encoded):
    out = folder / "scores"
    score_windows(
        folder / "model",
        folder / "samples",
        out,
        SETTINGS,
        model_key="m",
        seed=4,
        config_digest="d",
    )
    model = load_model(folder / "model")
    expected = {name: oracle(model, sample) for name, sample in encoded}
    table = pq.read_table(out / "windows.parquet").to_pandas()
    assert set(table["id"]) == set(expected)
    windows = window_list(7, SIZES)
    of_row = table.set_index(["id", "size", "start"])
    for name, (sums, tokens) in expected.items():
        row = of_row.loc[(name, 3, 2)]
        found = [row["text_sum"], row["visual_sum"]]
        np.testing.assert_allclose(found, sums[windows.index((3, 2))], rtol=1e-5, atol=1e-5)
        assert [row["text_tokens"], row["visual_tokens"]] == tokens.tolist()
    all_sums = np.stack([sums for sums, _ in expected.values()])
    all_tokens = np.stack([tokens for _, tokens in expected.values()])
    for size in (1, 2, 3):
        body = json.loads((out / f"pack{size}.json").read_text())
        assert (body["model"], body["num_layers"], body["num_samples"]) == ("m", 7, len(encoded))
        assert body["provenance"]["seed"] == 4
        assert [w["start"] for w in body["windows"]] == list(range(8 - size))
        for window in body["windows"]:
            sums = all_sums[:, windows.index((size, window["start"]))]
            means = {
                "token_mean": sums.sum() / all_tokens.sum(),
                "sample_mean": (sums.sum(1) / all_tokens.sum(1)).mean(),
                "text_mean": sums[:, 0].sum() / all_tokens[:, 0].sum(),
                "visual_mean": sums[:, 1].sum() / all_tokens[:, 1].sum(),
            }
            for key, value in means.items():
                assert window[key] == pytest.approx(value, abs=1e-5), (size, key)
    scores = read_scores(out, "paper", "m", 7)
    assert scores.packs[1] != read_scores(out, "released", "m", 7).packs[1]


def test_too_short_a_max_length_is_one_clear_error(folder):
    with pytest.raises(InputError, match=r"scoring\.max_length: none of 12 calibration samples"):
        score_windows(
            folder / "model", folder / "samples", folder / "none", SETTINGS | {"max_length": 3},
            model_key="m", seed=0,
        )  # fmt: skip
    assert not (folder / "none").exists()


def test_states_that_are_not_finite_are_refused(folder):
    model = load_model(folder / "model")
    with torch.no_grad():
        model.model.language_model.layers[3].mlp.down_proj.weight.fill_(float("nan"))
    broken = folder / "broken"
    model.save_pretrained(broken)
    load_processor(folder / "model").save_pretrained(broken)
    with pytest.raises(InputError, match=r"hidden states of sample .* are not finite"):
        score_windows(broken, folder / "samples", folder / "none", SETTINGS, model_key="m", seed=0)
