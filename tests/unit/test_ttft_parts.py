"""The parts of TTFT that need no benchmark: roofline, memory, machine, sanity."""

import subprocess
import sys

import numpy as np
import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from interlace.decoder.load import load_model
from interlace.evaluation.ttft import clock, machine, memory, ratios
from interlace.evaluation.ttft.outcome import Side, ratio, summarise
from interlace.evaluation.ttft.roofline import Peaks, Work, bounds, measure_peaks, prefill_work
from interlace.evaluation.ttft.sanity import check_sanity
from interlace.evaluation.ttft.turns import Measured
from tests.tiny import make_tiny_checkpoint

GRID = [1, 8, 12]  # patches; 24 tokens
PEAKS = Peaks(10.0, 1.0)


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    path = make_tiny_checkpoint(tmp_path_factory.mktemp("m") / "dense", layers=3, tied=False)
    return load_model(path, attention="eager")


def prompt(model, texts=5):
    image = model.config.image_token_id
    patches = GRID[1] * GRID[2]
    ids = torch.tensor([[image] * (patches // 4) + [7] * texts])
    vision = model.config.vision_config
    width = vision.in_channels * vision.temporal_patch_size * vision.patch_size**2
    types = (ids == image).int()
    return {
        "input_ids": ids,
        "attention_mask": torch.ones_like(ids),
        "pixel_values": torch.randn(patches, width),
        "image_grid_thw": torch.tensor([GRID]),
        "mm_token_type_ids": types,
    }


def test_operations_are_those_that_torch_counts(model):
    inputs = prompt(model)
    tokens = inputs["input_ids"].numel()
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        model(**inputs, logits_to_keep=1)
    counts = counter.get_flop_counts()
    root = type(model).__name__

    def of(name):
        return sum(counts.get(f"{root}.{name}", {}).values())

    work = prefill_work(model.config, [GRID], tokens, 4)
    mergers = [f"model.visual.deepstack_merger_list.{i}" for i in range(3)]
    projector = sum(map(of, ["model.visual.merger", *mergers]))
    assert work["projector"].flops == projector > 0
    assert work["vision"].flops == of("model.visual") - projector
    text = model.config.text_config
    # The whole square of scores is counted there, half of it here; rotary embeddings only there.
    upper = text.num_hidden_layers * 2 * tokens**2 * text.num_attention_heads * text.head_dim
    rotary = of("model.language_model.rotary_emb")
    counted = of("model.language_model") + of("lm_head") - rotary
    assert work["decoder"].flops + upper == counted


def test_bytes_are_those_of_the_weights(model):
    work = prefill_work(model.config, [GRID], 0, 4)

    def of(modules):
        found = [p for m in modules for p in m.parameters() if p.ndim > 1]
        return 4 * sum(p.numel() for p in found)

    visual = model.model.visual
    assert work["projector"].bytes == of([visual.merger, visual.deepstack_merger_list])
    assert work["vision"].bytes == of([visual.patch_embed, visual.blocks])
    assert work["decoder"].bytes == of([model.model.language_model.layers, model.lm_head])
    sparse = prefill_work(model.config, [GRID], 0, 4, sparse=True)["decoder"].bytes
    head = of([model.lm_head])
    assert sparse - head == pytest.approx((work["decoder"].bytes - head) * 9 / 16)


def test_text_alone_has_no_vision_and_other_families_no_roofline(model):
    work = prefill_work(model.config, [], 10, 2)
    assert work["vision"] == work["projector"] == Work(0.0, 0.0)
    model.config.model_type = "llava"
    try:
        with pytest.raises(KeyError, match="llava"):
            prefill_work(model.config, [], 10, 2)
    finally:
        model.config.model_type = "qwen3_vl"


def test_the_longer_of_reckoning_and_moving_bounds_a_stage():
    work = {"a": Work(100.0, 1.0), "b": Work(1.0, 100.0)}
    assert bounds(work, Peaks(10.0, 20.0)) == {"a": 10.0, "b": 5.0}


def test_peaks_are_the_best_of_several_rounds(monkeypatch):
    # Every pair of looks is a round: of products 2 s each but one of 1 s, of copies 4 s each.
    spans = iter([2.0] * 3 + [1.0] + [2.0] * 2 + [4.0] * 6)
    state = {"time": 0.0, "looks": 0}

    def now():
        state["looks"] += 1
        if state["looks"] % 2 == 0:
            state["time"] += next(spans)
        return state["time"]

    monkeypatch.setattr(clock, "now", now)
    peaks = measure_peaks(torch.device("cpu"), torch.float32)
    assert peaks == Peaks(2 * 1024**3 / (1.0 / 2), 2 * 2**27 / (4.0 / 2))


def test_groups_keep_dense_beside_every_variant():
    needs = {"dense": 10, "a": 10, "b": 8, "c": 6, "d": 2}
    assert memory.groups(needs, 1000) == [["dense", "a", "b", "c", "d"]]
    assert memory.groups(needs, 35) == [["dense", "a", "b"], ["dense", "c", "d"]]
    assert memory.groups(needs, 5) == [["dense", name] for name in "abcd"]


def test_weights_are_measured_from_the_files(tmp_path):
    path = make_tiny_checkpoint(tmp_path / "m", layers=2)
    loaded = load_model(path)
    count = sum(p.numel() for p in loaded.parameters())
    assert memory.weights_loaded(path, "float32") == 4 * count
    assert memory.weights_loaded(path, "bfloat16") == 2 * count
    files = sum(f.stat().st_size for f in path.glob("*.safetensors"))
    assert memory.weights_on_disk(path) == memory.weights_loaded(path, "auto") == files


def test_peak_memory_leaves_the_others_weights_out(monkeypatch):
    monkeypatch.setattr(memory, "_peak_resident", lambda: 1000)
    watch = memory.PeakMemory(torch.device("cpu"), {"dense": 300, "a": 200})
    for name in ("dense", "a"):
        watch.start()
        watch.stop(name)
    assert watch.peaks == {"dense": 800, "a": 700}
    monkeypatch.setattr(memory, "_peak_resident", lambda: 900)
    watch.stop("a")
    assert watch.peaks["a"] == 700


def test_the_resident_set_shows_what_a_pass_took():
    watch = memory.PeakMemory(torch.device("cpu"), {"dense": 0})
    watch.start()
    if "not reset" in watch.kind:
        pytest.skip("the peak of this process cannot be reset here")
    watch.stop("dense")
    before = watch.peaks["dense"]
    held = torch.ones(2**26)  # 256 MB, touched
    watch.stop("dense")
    assert watch.peaks["dense"] - before > 200e6
    assert held[-1] == 1


def test_a_peak_that_cannot_be_reset_says_so(monkeypatch):
    def refused(path, *_, **__):
        raise PermissionError(path)

    monkeypatch.setattr(memory.Path, "write_text", refused)
    watch = memory.PeakMemory(torch.device("cpu"), {"dense": 0})
    assert watch.kind == memory.RSS
    watch.start()
    assert watch.kind == f"{memory.RSS}, highest so far (not reset)"


def test_two_processors_are_two_devices(monkeypatch):
    cpu = torch.device("cpu")
    for name, expected in (("Xeon", "Xeon"), ("EPYC", "EPYC"), (None, "CPU")):
        monkeypatch.setattr(machine, "_cpu_model", lambda name=name: name)
        assert machine.device_name(cpu) == expected


def test_clocks_are_read_from_nvidia_smi_s_line():
    found = machine.parse_clocks("1980, 1980, 2619, 700.00, 35, 580.65.06\n")
    assert (found["clock_mhz"], found["power_limit_w"], found["driver"]) == (1980, 700, "580.65.06")
    assert machine.parse_clocks("1980, 1980, 2619, [N/A], 35, 1")["power_limit_w"] is None
    assert machine.parse_clocks("no devices were found") is None
    assert machine.read_clocks(torch.device("cpu")) is None


def sample(index, dense, pruned, variant="v", vision=1.0):
    stages = {
        name: {
            "vision": vision,
            "projector": 0.1,
            "decoder": seconds - vision - 0.1,
            "first_sampling": 0.0,
            "rest": 0.0,
        }
        for name, seconds in (("dense", dense), (variant, pruned))
    }
    seconds = {"dense": dense, variant: pruned}
    return Measured(str(index), 4, 6, [[1, 4, 4]], 0.5, seconds, stages, dict(seconds))


def result(variant, dense, pruned, layers, benchmark="AI2D", **changes):
    samples = [sample(i, a, b, variant) for i, (a, b) in enumerate(zip(dense, pruned, strict=True))]
    sides = {"dense": Side(36), variant: Side(layers)}
    body = summarise(samples, variant, sides, work={}, peaks=PEAKS, seed=0)
    head = {"model": "m", "variant": variant, "benchmark": benchmark, "kernels": "dense"}
    return body | head | changes


def test_a_result_holds_ratios_and_where_the_time_went():
    body = result("v", [4.1, 6.1, 8.1], [3.1, 4.1, 5.1], 27)
    assert body["speedup"] == pytest.approx(18.3 / 12.3)
    assert body["speedup_of_medians"]["ratio"] == pytest.approx(6.1 / 4.1)
    assert body["decoder_speedup"]["ratio"] == pytest.approx((3 + 5 + 7) / (2 + 3 + 4))
    low, high = body["speedup_interval"]
    assert 4.1 / 3.1 <= low < body["speedup"] < high <= 8.1 / 5.1
    assert body["tokens"]["visual_tokens"] == {"mean": 4.0, "min": 4, "max": 4}
    assert body["roofline"] is None
    assert body["samples"][1]["pruned_decoder_s"] == pytest.approx(3.0)


def test_a_roofline_stands_beside_what_was_measured():
    samples = [sample(0, 4.0, 3.0), sample(1, 5.0, 4.0)]
    work = {
        "dense": [{"vision": Work(10, 0), "decoder": Work(30, 0)}] * 2,
        "v": [{"vision": Work(10, 0), "decoder": Work(20, 0)}] * 2,
    }
    sides = {"dense": Side(36), "v": Side(24)}
    body = summarise(samples, "v", sides, work=work, peaks=PEAKS, seed=0)
    assert body["roofline"]["speedup"] == pytest.approx(4 / 3)
    assert body["roofline"]["dense"] == {
        "mean_s": 4.0, "vision_s": 1.0, "decoder_s": 3.0, "flops": 40.0, "bytes": 0.0
    }  # fmt: skip
    assert body["samples"][0]["pruned_roofline_s"] == 3.0


def test_draws_in_blocks_are_the_draws_at_once(monkeypatch):
    rng = np.random.default_rng(1)
    dense, pruned = rng.uniform(1, 2, 40), rng.uniform(1, 2, 40)
    whole = ratio(dense, pruned, 3)
    monkeypatch.setattr(ratios, "_BLOCK", 120)
    assert ratio(dense, pruned, 3) == whole


DENSE = [4.1, 5.1, 6.1, 4.6]
NOISE = [1.0, 1.002, 0.998, 1.001]


def shrunk(factor, noise=NOISE):
    """Return totals of a model whose decoder alone takes `factor` of dense's time."""
    return [1.1 + (s - 1.1) * factor * n for s, n in zip(DENSE, noise, strict=True)]


def test_sane_results_have_no_problems():
    a = result("a", DENSE, shrunk(27 / 36), 27)
    b = result("b", DENSE, [s * 1.005 for s in shrunk(27 / 36)], 27)
    assert check_sanity([a, b]) == []


def test_equal_depth_must_agree_whichever_dense_it_ran_beside():
    a = result("a", DENSE, shrunk(27 / 36), 27)
    slow = result("b", DENSE, [1.03 * s for s in shrunk(27 / 36)], 27)
    (problem,) = [p for p in check_sanity([a, slow]) if "a and b" in p]
    assert "27 layers each, and the ratio of their speed-ups is 1.03" in problem
    # the same, where everything was slower that day
    other = result("b", [2 * s for s in DENSE], [2 * s for s in shrunk(27 / 36)], 27)
    assert not [p for p in check_sanity([a, other]) if "a and b" in p]
    # nothing is said of another depth, or of other kernels
    assert not [p for p in check_sanity([a, {**slow, "kernels": "x"}]) if "a and b" in p]


def test_equal_depth_is_compared_on_every_benchmark_however_short():
    def times(seconds):
        return [seconds * n for n in NOISE]

    found = [
        *(result(v, times(50.0), times(40.0), 27, "HRBench8K") for v in "ab"),
        result("a", times(5.0), times(4.0), 27),
        result("b", times(5.0), times(3.8), 27),
    ]
    said = [p for p in check_sanity(found) if "a and b" in p]
    # in the mean over benchmarks, in which seconds count for nothing, and on the one
    assert ["on AI2D" in p for p in said] == [False, True]


def test_what_cannot_be_compared_is_said():
    a = result("a", DENSE, shrunk(27 / 36), 27)
    other = result("b", DENSE, shrunk(27 / 36), 27, "POPE")
    assert check_sanity([a, other]) == [
        "m: a and b have 27 layers each, but no sample in common: not compared"
    ]
    a, b = (result(v, DENSE[:1], shrunk(27 / 36)[:1], 27) for v in "ab")
    assert "a single sample" in "".join(check_sanity([a, b]))


def test_the_decoder_has_to_shrink_with_its_depth():
    assert check_sanity([result("a", DENSE, shrunk(27 / 36 * 1.05), 27)]) == []
    (problem,) = check_sanity([result("a", DENSE, shrunk(1.0), 27)])
    assert "1.000x as fast" in problem
    assert "its depth says 1.333x" in problem
    assert check_sanity([result("a", DENSE, shrunk(1.0), 27, kernels="semi_structured")]) == []


@pytest.mark.parametrize(
    ("layers", "factor", "wrong"),
    [
        *((33, 1.0, True), (33, 33 / 36, False), (33, 1 / 1.19, True)),
        *((27, 1 / 1.2, True), (27, 1 / 1.5, True), (36, 1.0, False), (36, 0.95, True)),
    ],
)
def test_what_the_decoder_may_miss_scales_with_what_leaving_layers_out_gains(layers, factor, wrong):
    assert bool(check_sanity([result("a", DENSE, shrunk(factor), layers)])) is wrong


def test_no_stage_is_below_zero():
    body = result("a", DENSE, shrunk(27 / 36), 27)
    split = body["split"]["dense"]
    split["vision_s"] += 2.0  # counted twice; the rest, a difference, makes up for it
    split["rest_s"] -= 2.0
    (problem,) = check_sanity([body])
    assert "rest_s of dense is -2.0" in problem
    split["rest_s"] = float("nan")
    assert "rest_s of dense is nan" in "".join(check_sanity([body]))


@pytest.mark.parametrize("value", [float("nan"), float("inf"), 0.0, -1.0])
def test_times_are_finite_and_positive(value):
    for key in ("dense_s", "pruned_decoder_s"):
        body = result("a", DENSE, shrunk(27 / 36), 27)
        body["samples"][1][key] = value
        (problem,) = check_sanity([body])
        assert f"m a AI2D: {key} is {value}" in problem


def test_checking_needs_no_torch():
    code = "import sys; from interlace.evaluation.ttft.sanity import check_sanity; "
    code += "sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0


def test_the_percentile_is_of_single_passes():
    rows = [sample(i, 1.0, 1.0) for i in range(4)]
    for row in rows:
        row.passes = {"dense": [0.5, 1.5], "v": [1.0, 1.0]}
    sides = {"dense": Side(36), "v": Side(27)}
    body = summarise(rows, "v", sides, work={}, peaks=PEAKS, seed=0)
    assert (body["dense"]["mean_s"], body["dense"]["p95_s"]) == (1.0, 1.5)
    assert body["pruned"]["p95_s"] == 1.0


class FakeEvent:
    """An event that knows its moment in milliseconds only once someone waited for it."""

    moments = iter(())
    waited: list["FakeEvent"] = []

    def __init__(self, *, enable_timing):
        assert enable_timing

    def record(self, stream):
        assert stream == "stream"
        self.moment = next(FakeEvent.moments)

    def synchronize(self):
        FakeEvent.waited.append(self)

    def elapsed_time(self, end):
        assert end in FakeEvent.waited
        return end.moment - self.moment


def test_on_a_gpu_events_are_marked_and_no_one_waits_before_the_end(monkeypatch):
    monkeypatch.setattr(torch.cuda, "Event", FakeEvent)
    monkeypatch.setattr(torch.cuda, "current_stream", lambda device: "stream")
    FakeEvent.moments, FakeEvent.waited = iter([10.0, 12.0, 15.0, 20.0, 21.0, 40.0, 42.0]), []
    marks = clock._Marks(torch.device("cuda"))
    names = ["vision", "projector", "projector end", "vision end", "decoder", "decoder end", "end"]
    for name in names:
        marks.set(name)
    assert FakeEvent.waited == []
    stages = clock._stages(marks, 0.035)
    assert stages == pytest.approx(
        {
            "vision": 0.007,
            "projector": 0.003,
            "decoder": 0.019,
            "first_sampling": 0.002,
            "rest": 0.004,
        }
    )


def test_peak_memory_on_a_gpu_is_what_torch_allocated(monkeypatch):
    reset = []
    monkeypatch.setattr(torch.cuda, "reset_peak_memory_stats", reset.append)
    monkeypatch.setattr(torch.cuda, "max_memory_allocated", lambda device: 5000)
    allocated = iter([100, 700])
    monkeypatch.setattr(torch.cuda, "memory_allocated", lambda device: next(allocated))
    device = torch.device("cuda")
    assert memory.load_measured(device, lambda: "model") == ("model", 600)
    watch = memory.PeakMemory(device, {"dense": 600, "a": 400})
    watch.start()
    watch.stop("dense")
    assert (reset, watch.peaks, watch.kind) == ([device], {"dense": 4600}, memory.CUDA)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_a_gpu_gives_the_same_token_and_stages_that_add_up(model):
    inputs = prompt(model)
    expected = clock.first_token(model, inputs)
    try:
        placed = {key: value.cuda() for key, value in inputs.items()}
        clock.first_token(model.cuda(), placed)
        found = clock.first_token(model, placed)
        peaks = measure_peaks(torch.device("cuda"), torch.float32)
    finally:
        model.cpu()
    assert found.token == expected.token
    assert sum(found.stages.values()) == pytest.approx(found.seconds)
    assert all(found.stages[stage] > 0 for stage in ("vision", "projector", "decoder"))
    assert abs(found.stages["rest"]) < found.seconds
    assert peaks.flops_per_s > 1e11
    assert peaks.bytes_per_s > 1e10
