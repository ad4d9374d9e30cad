import contextlib
import functools

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from interlace.decoder import load
from interlace.decoder.load import load_model, load_processor
from interlace.errors import InputError
from interlace.evaluation import kit
from interlace.evaluation.prepare import prepare_benchmarks
from interlace.evaluation.ttft import clock, first_token, measure_ttft, roofline, run, turns
from interlace.evaluation.ttft.clock import FirstToken
from interlace.evaluation.ttft.decode import decode_rate
from interlace.evaluation.ttft.kept import kept
from interlace.evaluation.ttft.outcome import ratio
from interlace.evaluation.ttft.roofline import Peaks
from interlace.io import read_json
from interlace.sparsity import kernels as kernels_module
from interlace.sparsity.two_four import prune_two_four
from tests.tiny import make_tiny_checkpoint
from tests.tiny_benchmarks import make_tiny_benchmarks

DATASETS = ("ChartQA_TEST", "OCRBench")
SETTINGS = {"device": "cpu", "samples": 2, "warmup": 1, "repeats": 2, "attention": "sdpa"}
SETTINGS |= {"decode_tokens": 3}


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


@pytest.fixture(autouse=True)
def quick_peaks(monkeypatch):
    monkeypatch.setattr(run.roofline, "measure_peaks", lambda *_: Peaks(1e9, 1e9))
    monkeypatch.setattr(run.gc, "collect", lambda *_: 0)  # of a process full of tests: a second


@pytest.fixture
def ticks(monkeypatch):
    """Every look at the clock is a second later than the one before."""
    looks = iter(range(10**9))
    monkeypatch.setattr(clock, "now", lambda: float(next(looks)))


def measure(work, out, variants, benchmarks=("ChartQA",), memory_mb=None, **settings):
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
        memory_mb=memory_mb,
    )


@pytest.fixture(scope="module")
def prompt(work):
    """A dense model and a prompt of ChartQA as VLMEvalKit makes it."""
    from interlace.evaluation.model import LocalQwen3VL

    model = load_model(work / "dense")
    with kit.kit_environment(work / "lmu"):
        preparer = LocalQwen3VL(model, load_processor(work / "dense"))
        dataset = kit.build_dataset("ChartQA_TEST")
        message = preparer.message(dataset, dataset.data.iloc[0])
        return model, preparer.prepare(message, "ChartQA_TEST")


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
    assert result["loaded_together"] == ["dense", "pruned", "third"]
    assert (result["dense"]["num_layers"], result["pruned"]["num_layers"]) == (6, 4)
    mean = np.mean([sample["dense_s"] for sample in result["samples"]])
    assert result["dense"]["mean_s"] == pytest.approx(mean)
    assert result["speedup"] == pytest.approx(mean / result["pruned"]["mean_s"])
    low, high = result["speedup_interval"]
    assert low <= result["speedup"] <= high
    for side, folder in (("dense", "dense"), ("pruned", "pruned")):
        found, split = result[side], result["split"][side]
        assert all(split[f"{stage}_s"] > 0 for stage in ("vision", "projector", "decoder"))
        assert sum(split.values()) == pytest.approx(found["mean_s"])
        assert result["end_to_end"][side]["mean_s"] > result["preprocessing"]["mean_s"] > 0
        assert found["decode_tokens_per_s"] > 0
        weights = (work / folder / "model.safetensors").stat().st_size
        assert found["weights_disk_bytes"] == weights
        assert 0.8 * weights < found["weights_loaded_bytes"] < weights  # without the file's header
        assert found["peak_memory_bytes"] > found["weights_loaded_bytes"]
    assert "resident set" in result["memory_kind"]
    assert result["machine"]["cpu_cores"] >= 1
    assert result["clocks"] == {"before": None, "after": None}
    # OCRBench's 96x64 px become at least 102400 px: 100 tokens of 32x32 px or more
    assert all(sample["visual_tokens"] >= 96 for sample in result["samples"])
    chart = read_json(tmp_path / "pruned" / "ChartQA.json")
    assert all(sample["visual_tokens"] < 10 for sample in chart["samples"])
    assert chart["roofline"]["speedup"] > 1
    # the same samples whatever the variant
    third = read_json(tmp_path / "third" / "ChartQA.json")
    assert [s["index"] for s in chart["samples"]] == [s["index"] for s in third["samples"]]
    assert [s["dense_s"] for s in chart["samples"]] == [s["dense_s"] for s in third["samples"]]


def test_results_say_what_kernels_they_are_of(work, tmp_path, monkeypatch):
    fake_passes(monkeypatch)
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


def fake_passes(monkeypatch):
    """Passes that take a second a layer, about one of them in the vision tower; return who ran."""
    seen = []

    def fake(model, inputs):
        layers = model.config.text_config.num_hidden_layers
        seen.append(layers)
        stages = {"vision": 1.05, "projector": 0.0, "decoder": layers - 1.05}
        return FirstToken(0, float(layers), stages | {"first_sampling": 0.0, "rest": 0.0})

    monkeypatch.setattr(turns, "first_token", fake)
    monkeypatch.setattr(turns, "decode_rate", lambda model, inputs, tokens: 10.0)
    monkeypatch.setattr(load, "load_model", load_once)
    return seen


@functools.cache
def load_once(*arguments):
    return load_model(*arguments)


def test_models_take_turns_in_a_changing_order_after_a_warm_up(work, tmp_path, monkeypatch, capsys):
    seen = fake_passes(monkeypatch)
    measure(work, tmp_path, ["pruned", "third"], samples=1, repeats=20, warmup=2)
    assert seen[:6] == [6, 4, 5, 6, 4, 5]
    rounds = [tuple(seen[i : i + 3]) for i in range(6, len(seen), 3)]
    assert len(rounds) == 40  # half of them from the image file
    assert {tuple(sorted(r)) for r in rounds} == {(4, 5, 6)}
    assert len(set(rounds)) > 3
    result = read_json(tmp_path / "pruned" / "ChartQA.json")
    assert result["speedup"] == pytest.approx(6 / 4)
    assert result["speedup_of_medians"]["ratio"] == pytest.approx(6 / 4)
    # a single sample has no interval
    assert result["decoder_speedup"] == {"ratio": pytest.approx(4.95 / 2.95), "interval": None}
    assert result["speedup_interval"] is None
    split = result["split"]["pruned"]
    assert (split["vision_s"], split["decoder_s"]) == pytest.approx((1.05, 2.95))
    # 6 layers over 4, with a second of each layer's in the vision tower: not what the depths say
    printed = capsys.readouterr().out
    assert "check this: tiny pruned: the decoder is 1.678x as fast" in printed
    assert "check this: tiny third" not in printed


def test_a_shape_is_warmed_up_once(work, tmp_path, monkeypatch):
    seen = fake_passes(monkeypatch)
    # ChartQA's three pictures are of two sizes, and its questions of one length
    measure(work, tmp_path, ["pruned"], samples=3, repeats=1, warmup=5)
    assert len(seen) == 2 * (5 * 2 + 3 * (1 + 1))


def test_a_killed_job_goes_on_where_it_was(work, tmp_path, monkeypatch):
    seen, measured = fake_passes(monkeypatch), []
    whole = run._Session.measure

    def killed(session, benchmark):
        if benchmark.name == "OCRBench" and not measured:
            raise KeyboardInterrupt
        return whole(session, benchmark)

    monkeypatch.setattr(run._Session, "measure", killed)
    names = (["pruned", "third"], ["ChartQA", "OCRBench"])
    with pytest.raises(KeyboardInterrupt):
        measure(work, tmp_path, *names)
    first = read_json(tmp_path / "pruned" / "ChartQA.json")
    for path in tmp_path.glob("*/ChartQA.json"):
        path.unlink()  # as Snakemake does
    measured.append("now")
    del seen[:]
    measure(work, tmp_path, *names, device="cpu")
    again = read_json(tmp_path / "pruned" / "ChartQA.json")
    del first["provenance"], again["provenance"]
    assert again == first
    assert (tmp_path / "third" / "OCRBench.json").exists()
    one = len(seen)
    # all done: nothing is kept, and who asks again has it measured again
    assert not (tmp_path / "work").exists()
    del seen[:]
    measure(work, tmp_path, *names)
    assert len(seen) > one


def test_what_was_kept_serves_the_same_measurement_only(work, tmp_path, monkeypatch):
    fake_passes(monkeypatch)
    started = []
    whole = run._Session.measure

    def killed(session, benchmark):
        started.append(benchmark.name)
        if benchmark.name == "OCRBench":
            raise KeyboardInterrupt
        return whole(session, benchmark)

    monkeypatch.setattr(run._Session, "measure", killed)
    for settings in ({}, {}, {"repeats": 1}, {"attention": "eager"}):
        with pytest.raises(KeyboardInterrupt):
            measure(work, tmp_path, ["pruned"], ["ChartQA", "OCRBench"], **settings)
    assert started == [
        *("ChartQA", "OCRBench"),
        "OCRBench",
        *("ChartQA", "OCRBench"),
        *("ChartQA", "OCRBench"),
    ]


def test_groups_stay_those_of_the_first_attempt_while_memory_allows(tmp_path):
    with kept(tmp_path / "work", {"a": 1}) as work:
        assert work.groups([["dense", "a"], ["dense", "b"]]) == [["dense", "a"], ["dense", "b"]]
        assert work.groups([["dense", "a", "b"]]) == [["dense", "a"], ["dense", "b"]]
        less = [["dense", name] for name in "abc"]
        assert work.groups(less) == less
        with pytest.raises(InputError, match="at work on it"), kept(tmp_path / "work", {"a": 1}):
            pass


def test_what_other_settings_left_behind_is_counted(tmp_path, capsys):
    root = tmp_path / "work"
    for number in (1, 2, 3):
        with contextlib.suppress(KeyboardInterrupt), kept(root, {"a": number}):
            raise KeyboardInterrupt
    said = capsys.readouterr().out.splitlines()
    assert [line.split(" holds what ")[1].split()[0] for line in said] == ["1", "2"]


def test_another_commit_measures_again(work, tmp_path, monkeypatch):
    fake_passes(monkeypatch)
    keys = []

    @contextlib.contextmanager
    def keyed(root, key):
        keys.append(key)
        with kept(root, key) as found:
            yield found

    monkeypatch.setattr(run, "kept", keyed)
    for commit in ("a", "b"):
        monkeypatch.setattr(run, "git_commit", lambda commit=commit: commit)
        measure(work, tmp_path, ["pruned"], samples=1)
    assert [key.pop("commit") for key in keys] == ["a", "b"]
    assert keys[0] == keys[1]


def test_decoding_is_timed_in_as_many_turns(work, tmp_path, monkeypatch):
    fake_passes(monkeypatch)
    rates = iter([10.0, 10.0, 30.0, 30.0])
    monkeypatch.setattr(
        turns, "decode_rate", lambda model, inputs, tokens: next(rates) if tokens == 3 else 1.0
    )
    measure(work, tmp_path, ["pruned"], samples=1, repeats=2)
    result = read_json(tmp_path / "pruned" / "ChartQA.json")
    # 2 tokens in 0.2 s and 2 in 0.067 s
    assert result["pruned"]["decode_tokens_per_s"] == pytest.approx(15.0)


def test_what_does_not_fit_together_is_loaded_in_groups(work, tmp_path, monkeypatch, capsys):
    fake_passes(monkeypatch)
    monkeypatch.setattr(run, "free_bytes", lambda device, limit: 1)
    measure(work, tmp_path, ["pruned", "third"], samples=1)
    assert "2 groups, each beside dense: pruned; third" in capsys.readouterr().out
    for name in ("pruned", "third"):
        result = read_json(tmp_path / name / "ChartQA.json")
        assert result["loaded_together"] == ["dense", name]


def test_the_job_s_own_memory_is_what_has_to_hold_the_models(work, tmp_path, monkeypatch):
    fake_passes(monkeypatch)
    asked = []
    monkeypatch.setattr(run, "free_bytes", lambda device, limit: asked.append(limit) or 10**9)
    measure(work, tmp_path, ["pruned"], samples=1, memory_mb=6000)
    assert asked == [6000]


def test_memory_that_runs_out_is_said_with_the_way_out(work, tmp_path, monkeypatch):
    fake_passes(monkeypatch)

    def full(*_):
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(turns, "first_token", full)
    with pytest.raises(
        InputError, match=r"on ChartQA with dense, pruned, third loaded .* lower ttft"
    ):
        measure(work, tmp_path, ["pruned", "third"], samples=1)
    with pytest.raises(InputError, match="with dense, pruned loaded together; take a device"):
        measure(work, tmp_path, ["pruned"], samples=1)


def test_a_family_without_a_roofline_is_measured_all_the_same(work, tmp_path, monkeypatch):
    fake_passes(monkeypatch)
    monkeypatch.setattr(roofline, "FAMILIES", ())
    measure(work, tmp_path, ["pruned"], samples=1)
    result = read_json(tmp_path / "pruned" / "ChartQA.json")
    assert result["roofline"] is None
    assert result["speedup"] == pytest.approx(6 / 4)


def test_stages_are_marked_where_they_begin_and_end(prompt, ticks):
    model, inputs = prompt
    found = first_token(model, inputs)
    mergers = 1 + len(model.model.visual.deepstack_merger_list)
    assert found.stages == {
        "vision": mergers + 1.0,  # a look before and after each of them
        "projector": float(mergers),
        "decoder": 1.0,
        "first_sampling": 1.0,
        "rest": 3.0,  # from the first look to the marks, to the decoder, and after the last
    }
    assert sum(found.stages.values()) == found.seconds


def test_a_prompt_without_an_image_spends_nothing_on_vision(prompt, ticks):
    model, inputs = prompt
    words = inputs["input_ids"][:, -4:]
    found = first_token(model, {"input_ids": words, "attention_mask": torch.ones_like(words)})
    assert found.stages["vision"] == found.stages["projector"] == 0
    assert found.stages["decoder"] == 1


def test_the_token_is_the_one_that_generate_would_give(prompt):
    model, inputs = prompt
    found = first_token(model, inputs)
    generated = model.generate(**inputs, max_new_tokens=1, do_sample=False)
    assert found.token == int(generated[0, -1])
    hooked = [m for m in model.modules() if m._forward_hooks or m._forward_pre_hooks]
    assert not hooked


def test_decoding_is_timed_after_the_first_token_and_through_an_end_of_text(prompt, ticks):
    model, inputs = prompt
    eos = model.generation_config.eos_token_id
    generated = model.generate(**inputs, max_new_tokens=1, do_sample=False)
    try:
        model.generation_config.eos_token_id = int(generated[0, -1])  # the first token would end it
        assert decode_rate(model, inputs, 7) == 1.0
    finally:
        model.generation_config.eos_token_id = eos


def test_mistakes_are_refused(work, tmp_path):
    with pytest.raises(InputError, match="repeats"):
        measure(work, tmp_path, ["pruned"], repeats=0)
    with pytest.raises(InputError, match=r"POPE\.json: no such file; prepare"):
        measure(work, tmp_path, ["pruned"], ["POPE"])
    with pytest.raises(InputError, match="max_pixels: 50176 is below 102400"):
        measure(work, tmp_path, ["pruned"], ["OCRBench"], max_pixels=50176)
    foreign = load_model(make_tiny_checkpoint(work / "foreign", layers=2))
    foreign.resize_token_embeddings(foreign.config.text_config.vocab_size + 16)
    foreign.save_pretrained(work / "foreign")
    with pytest.raises(InputError, match="foreign: its vocabulary has another size"):
        measure(work, tmp_path, ["foreign"])
    assert not list(tmp_path.glob("*/*.json"))


def test_images_are_read_within_the_benchmark_s_own_limits(work, tmp_path, monkeypatch):
    fake_passes(monkeypatch)
    pixels = {"ChartQA": {"min_pixels": 65536}}
    measure(work, tmp_path, ["pruned"], samples=1, pixels=pixels)
    result = read_json(tmp_path / "pruned" / "ChartQA.json")
    assert result["min_pixels"] == 65536
    assert result["samples"][0]["visual_tokens"] >= 64


@given(st.lists(st.floats(0.01, 10), min_size=1, max_size=20), st.floats(0.5, 4))
def test_a_constant_ratio_has_no_interval(times, factor):
    pruned = np.array(times)
    found = ratio(pruned * factor, pruned, seed=0)
    assert found == {"ratio": pytest.approx(factor), "interval": None}
