import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from interlace.decoder.load import load_model
from interlace.errors import InputError
from interlace.evaluation import kit, ttft
from interlace.evaluation.prepare import prepare_benchmarks
from interlace.evaluation.ttft import first_token, measure_ttft, speedup_interval
from interlace.io import read_json
from interlace.sparsity import kernels as kernels_module
from interlace.sparsity.two_four import prune_two_four
from tests.tiny import make_tiny_checkpoint
from tests.tiny_benchmarks import make_tiny_benchmarks

DATASETS = ("ChartQA_TEST", "OCRBench")
SETTINGS = {"device": "cpu", "samples": 2, "warmup": 1, "repeats": 3, "attention": "sdpa"}


@pytest.fixture(scope="module")
def work(tmp_path_factory):
    root = tmp_path_factory.mktemp("ttft")
    make_tiny_benchmarks(root / "tsv", questions=3, datasets=DATASETS)
    prepare_benchmarks(DATASETS, root / "lmu", str(root / "tsv"))
    make_tiny_checkpoint(root / "dense", layers=6)
    make_tiny_checkpoint(root / "pruned", layers=4)
    make_tiny_checkpoint(root / "third", layers=5)
    sparse = load_model(make_tiny_checkpoint(root / "magnitude_2_4", layers=6))
    prune_two_four(sparse, "magnitude_2_4")
    sparse.save_pretrained(root / "magnitude_2_4")
    return root


def measure(work, out, variants, benchmarks=("ChartQA",), **settings):
    paths = {name: work / name for name in variants}
    measure_ttft(
        work / "dense",
        paths,
        benchmarks,
        work / "lmu",
        out,
        {**SETTINGS, **settings},
        model="tiny",
        seed=0,
    )


def test_every_variant_gets_a_file_per_benchmark(work, tmp_path):
    threads = torch.get_num_threads()
    measure(work, tmp_path, ["pruned", "third"], ["ChartQA", "OCRBench"])
    assert torch.get_num_threads() == threads
    assert sorted(p.relative_to(tmp_path).as_posix() for p in tmp_path.rglob("*.json")) == [
        *("pruned/ChartQA.json", "pruned/OCRBench.json"),
        *("third/ChartQA.json", "third/OCRBench.json"),
    ]
    result = read_json(tmp_path / "pruned" / "OCRBench.json")
    assert (result["model"], result["variant"]) == ("tiny", "pruned")
    assert (result["num_samples"], result["fixture"], result["threads"]) == (2, True, 1)
    mean = np.mean([sample["dense_s"] for sample in result["samples"]])
    assert result["dense"]["mean_s"] == pytest.approx(mean)
    assert result["speedup"] == pytest.approx(mean / result["pruned"]["mean_s"])
    low, high = result["speedup_interval"]
    assert low <= result["speedup"] <= high
    for side in ("dense", "pruned"):
        split = result["split"][side]
        assert 0 < split["vision_s"] < result[side]["mean_s"]
        assert sum(split.values()) == pytest.approx(result[side]["mean_s"])
    # OCRBench's 96x64 px become at least 102400 px: 100 tokens of 32x32 px or more
    assert all(sample["visual_tokens"] >= 96 for sample in result["samples"])
    chart = read_json(tmp_path / "pruned" / "ChartQA.json")
    assert all(sample["visual_tokens"] < 10 for sample in chart["samples"])
    # the same samples whatever the variant
    third = read_json(tmp_path / "third" / "ChartQA.json")
    assert [s["index"] for s in chart["samples"]] == [s["index"] for s in third["samples"]]
    assert [s["dense_s"] for s in chart["samples"]] == [s["dense_s"] for s in third["samples"]]


def test_results_say_what_kernels_they_are_of(work, tmp_path, monkeypatch):
    variants = ["pruned", "magnitude_2_4"]
    measure(work, tmp_path / "auto", variants, samples=1)
    measure(work, tmp_path / "off", variants, samples=1, sparse_kernels="off")
    kernels = {}
    for path in sorted(tmp_path.glob("*/*/ChartQA.json")):
        result = read_json(path)
        assert result["kernels"] == "dense"
        kernels[path.parts[-3], result["variant"]] = result["kernels_reason"]
    off = "ttft.sparse_kernels is off"
    assert kernels == {
        ("auto", "magnitude_2_4"): "there is no CUDA device",
        ("auto", "pruned"): "the weights are not 2:4 sparse",
        ("off", "magnitude_2_4"): off,
        ("off", "pruned"): off,
    }
    seen = []

    def compressed(model, wanted):
        seen.append(wanted)
        return {"kernels": "semi_structured", "kernels_reason": "as told"}

    monkeypatch.setattr(kernels_module, "use_sparse_kernels", compressed)
    measure(work, tmp_path / "told", ["magnitude_2_4"], samples=1)
    result = read_json(tmp_path / "told" / "magnitude_2_4" / "ChartQA.json")
    assert (result["kernels"], result["kernels_reason"]) == ("semi_structured", "as told")
    assert seen == ["auto", "auto"]


def test_models_take_turns_in_a_changing_order_after_a_warm_up(work, tmp_path, monkeypatch):
    seen = []

    def fake(model, inputs):
        layers = model.config.text_config.num_hidden_layers
        seen.append(layers)
        return 0, float(layers), 1.0

    monkeypatch.setattr(ttft, "first_token", fake)
    measure(work, tmp_path, ["pruned", "third"], samples=1, repeats=20, warmup=2)
    assert seen[:6] == [6, 4, 5, 6, 4, 5]
    rounds = [tuple(seen[i : i + 3]) for i in range(6, len(seen), 3)]
    assert len(rounds) == 20
    assert {tuple(sorted(r)) for r in rounds} == {(4, 5, 6)}
    assert len(set(rounds)) > 3
    result = read_json(tmp_path / "pruned" / "ChartQA.json")
    assert result["speedup"] == pytest.approx(6 / 4)
    assert result["split"]["pruned"] == {"vision_s": 1.0, "decoder_s": 3.0}


def test_the_token_is_the_one_that_generate_would_give(work):
    from interlace.decoder.load import load_processor
    from interlace.evaluation.model import LocalQwen3VL

    model = load_model(work / "dense")
    with kit.kit_environment(work / "lmu"):
        preparer = LocalQwen3VL(model, load_processor(work / "dense"))
        dataset = kit.build_dataset("ChartQA_TEST")
        message = preparer.message(dataset, dataset.data.iloc[0])
        inputs = preparer.prepare(message, "ChartQA_TEST")
    token, seconds, vision = first_token(model, inputs)
    generated = model.generate(**inputs, max_new_tokens=1, do_sample=False)
    assert token == int(generated[0, -1])
    assert 0 < vision < seconds
    assert not model.model.visual._forward_hooks
    assert not model.model.visual._forward_pre_hooks


def test_mistakes_are_refused(work, tmp_path):
    with pytest.raises(InputError, match="repeats"):
        measure(work, tmp_path, ["pruned"], repeats=0)
    with pytest.raises(InputError, match=r"POPE\.json: no such file; prepare"):
        measure(work, tmp_path, ["pruned"], ["POPE"])
    with pytest.raises(InputError, match="max_pixels: 1024 is below 102400"):
        measure(work, tmp_path, ["pruned"], ["OCRBench"], max_pixels=1024)
    foreign = load_model(make_tiny_checkpoint(work / "foreign", layers=2))
    foreign.resize_token_embeddings(foreign.config.text_config.vocab_size + 16)
    foreign.save_pretrained(work / "foreign")
    with pytest.raises(InputError, match="foreign: its vocabulary has another size"):
        measure(work, tmp_path, ["foreign"])
    assert not list(tmp_path.iterdir())


@given(st.lists(st.floats(0.01, 10), min_size=1, max_size=20), st.floats(0.5, 4))
def test_interval_of_a_constant_ratio_is_that_ratio(times, factor):
    pruned = np.array(times)
    interval = speedup_interval(pruned * factor, pruned, np.random.default_rng(0), resamples=50)
    assert interval == pytest.approx([factor, factor])
