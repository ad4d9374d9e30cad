import csv
import json

import pytest

from interlace.errors import InputError
from interlace.io import read_json, write_json
from interlace.reporting.figure_ttft_tokens import draw_tokens
from interlace.reporting.paper import load_paper
from interlace.reporting.results import Results, load_results
from interlace.reporting.table_ttft import make_ttft_table
from interlace.reporting.timings import check_timings_alike, mean_interval, read_timing
from interlace.reporting.ttft_outputs import build_ttft_figures, build_ttft_table
from tests.unit.reporting_results import MODELS, STANDIN, write_timing
from tests.unit.test_reporting_figure_ttft import full_timing, of_samples

PAPER = load_paper()


def side(mean, layers, rate, memory, disk):
    return {
        "mean_s": mean,
        "num_layers": layers,
        "decode_tokens_per_s": rate,
        "peak_memory_bytes": memory,
        "weights_disk_bytes": disk,
    }


@pytest.fixture
def files(tmp_path):
    found = []
    for number, benchmark in enumerate(PAPER.names):
        speedup = 1.2 + 0.1 * (number % 2)
        tokens = tuple(range(40, 100, 10))
        file = full_timing(tmp_path, "big", "interlace-25-ft", benchmark, speedup, tokens)
        body = read_json(file)
        means = {key: body[key]["mean_s"] for key in ("dense", "pruned")}
        decoder = [body["split"][key]["decoder_s"] for key in means]
        body |= {
            "dense": side(means["dense"], 36, 20.0, 3e9 + number, 17.5e9),
            "pruned": side(means["pruned"], 27, 26.0 + 2 * (number % 2), 2e9, 14e9),
            "decoder_speedup": {"ratio": decoder[0] / decoder[1], "interval": [1.3, 1.4]},
            "roofline": {"speedup": 1.31},
            "end_to_end": {"dense": {"mean_s": 0.2}, "pruned": {"mean_s": 0.18}, "ratio": 1.11},
            "memory_kind": "CUDA",
        }
        write_json(file, body)
        found.append(file)
    return found


def test_a_row_per_variant_beside_the_paper_s_mean(files, tmp_path):
    files.append(write_timing(tmp_path, "big", "sleb-25", "AI2D", 1.3))
    table = make_ttft_table(load_results(files), PAPER, MODELS, STANDIN)
    assert [row.key for row in table.rows] == ["big sleb-25", "big interlace-25-ft"]
    cells = {key: table.cells["big interlace-25-ft", key] for _, key in table.cells}
    speedup = cells["speedup"]
    assert speedup.ours == pytest.approx(1.25, rel=0.01)
    assert speedup.paper == PAPER.cell(4, "Overall", "8B_25")
    assert 1.23 < speedup.low < speedup.ours < speedup.high < 1.27
    ours = {key: cell.ours for key, cell in cells.items()}
    assert (ours["possible"], ours["decoder"]) == pytest.approx((1.31, 4 / 3), rel=0.01)
    assert (ours["end_to_end"], ours["layers"]) == pytest.approx((1.11, 27))
    assert (ours["dense_rate"], ours["pruned_rate"]) == pytest.approx((20, 27))
    assert (ours["dense_memory"], ours["pruned_memory"]) == pytest.approx((3000, 2000), rel=1e-6)
    assert (ours["dense_disk"], ours["pruned_disk"]) == pytest.approx((17500, 14000))
    assert ours["share_decoder"] == pytest.approx(100 * 0.0006 / 0.001 * 1.25, rel=0.01)
    assert 1.3 < cells["decoder"].low < cells["decoder"].high < 1.36
    # the other variant has one benchmark, and nothing beyond its speed-up
    other = table.cells["big sleb-25", "speedup"]
    assert (other.ours, other.coverage, other.difference) == (1.3, (1, 12), None)
    assert other.paper == PAPER.cell(2, "SLEB", "ttft_speedup") > 1
    assert table.cells["big sleb-25", "possible"].ours is None
    assert "Peak memory: CUDA." in table.notes
    assert table.standin


def test_all_formats_are_written(files, tmp_path):
    stem = tmp_path / "tables" / "ttft"
    build_ttft_table(files, stem, models=MODELS, standin=STANDIN, intervals=True)
    with stem.with_suffix(".csv").open() as handle:
        rows = list(csv.DictReader(handle))
    (speedup,) = [r for r in rows if r["column"] == "TTFT"]
    assert float(speedup["ours"]) == pytest.approx(1.25, rel=0.01)
    assert 1.23 < float(speedup["ours_low"]) < 1.25
    assert {row["model"] for row in rows} == {MODELS["big"]["label"]}
    assert "Roofline" in stem.with_suffix(".html").read_text()
    assert r"\begin{tabular}" in stem.with_suffix(".tex").read_text()
    assert "decoder alone" in stem.with_suffix(".md").read_text()
    written = stem.with_suffix(".md").read_text()
    assert "| Variant | Model | Layers |" in written
    assert "- Brackets: 95 % intervals of the speed-ups, bootstrap over the timed" in written


def test_no_timings_make_an_empty_table():
    assert make_ttft_table(Results(), PAPER, MODELS).rows == []


def test_an_interval_needs_samples_and_holds_the_mean(tmp_path):
    tokens = tuple(range(10, 60, 7))
    file = full_timing(tmp_path, "big", "interlace-25-ft", "AI2D", tokens=tokens)
    body = read_json(file)
    for number, sample in enumerate(body["samples"]):
        sample["pruned_s"] *= 1 + 0.1 * (number % 3)
    write_json(file, body | of_samples(body["samples"]))
    timings = load_results([file]).timings["big", "interlace-25-ft"]
    low, high = mean_interval(timings)
    dense, pruned = (sum(s[f"{k}_s"] for s in body["samples"]) for k in ("dense", "pruned"))
    assert low < dense / pruned < high
    assert mean_interval(timings) == (low, high)
    assert mean_interval(timings, seed=1) != (low, high)
    assert mean_interval({}) is None
    bare = write_timing(tmp_path, "small", "interlace-25-ft", "AI2D", 1.2)
    assert mean_interval(load_results([bare]).timings["small", "interlace-25-ft"]) is None


def test_a_file_without_a_mean_is_refused(tmp_path):
    with pytest.raises(InputError, match="no key 'mean_s'"):
        read_timing({"speedup": 1.0, "dense": {}, "pruned": {}}, tmp_path / "AI2D.json")


def test_any_benchmarks_have_an_interval_and_a_single_sample_has_none(files, tmp_path):
    timings = load_results(files).timings["big", "interlace-25-ft"]
    some = {name: timings[name] for name in PAPER.names[:3]}
    low, high = mean_interval(some)
    assert low < sum(t.speedup for t in some.values()) / 3 < high
    single = full_timing(tmp_path, "big", "interlace-10-ft", "AI2D", tokens=(10,))
    timing = load_results([single]).timings["big", "interlace-10-ft"]
    assert (timing["AI2D"].low, timing["AI2D"].high) == (None, None)
    assert mean_interval(timing) is None
    flat = full_timing(tmp_path, "big", "interlace-15-ft", "AI2D", tokens=(10, 10, 10))
    body = read_json(flat)
    for sample in body["samples"]:
        sample["pruned_s"] = 0.008
    write_json(flat, body | of_samples(body["samples"]))
    assert mean_interval(load_results([flat]).timings["big", "interlace-15-ft"]) is None


def test_what_is_wrong_with_times_of_several_jobs_is_in_the_notes(files, tmp_path):
    table = make_ttft_table(load_results(files), PAPER, MODELS)
    assert any(note.startswith("Checked over 12 files") for note in table.notes)
    for file in list(files):
        body = read_json(file) | {"variant": "sleb-25"}
        for sample in body["samples"]:
            sample["pruned_s"] *= 1.1
        changed = of_samples(body["samples"])
        body["pruned"]["mean_s"] = changed["pruned"].pop("mean_s")
        body |= {key: changed[key] for key in ("speedup", "split")}
        write_json(tmp_path / "big" / "ttft" / "sleb-25" / file.name, body)
        files.append(tmp_path / "big" / "ttft" / "sleb-25" / file.name)
    bare = write_timing(tmp_path, "big", "interlace-10-ft", "AI2D", 1.1)
    notes = make_ttft_table(load_results([*files, bare]), PAPER, MODELS).notes
    assert any("Check this: big: interlace-25-ft and sleb-25 have 27 layers" in n for n in notes)
    assert any(note.startswith("Not checked: 1 files") for note in notes)
    assert not any(note.startswith("Checked over") for note in notes)


MADE = {"device": "H100", "dtype": "bfloat16", "attention": "sdpa", "prompt": "dataset"}
MADE |= {"min_pixels": 4096, "max_pixels": None, "threads": 1}
TORCH = {"provenance": {"versions": {"torch": "2.7"}}}


@pytest.mark.parametrize(
    ("key", "other"),
    [
        *(("device", "CPU"), ("dtype", "float32"), ("attention", "eager"), ("prompt", "custom")),
        *(("min_pixels", 1), ("threads", 8)),
    ],
)
def test_files_that_were_made_differently_are_refused(tmp_path, key, other):
    first = full_timing(tmp_path, "big", "interlace-10-ft", "AI2D", **MADE)
    second = full_timing(tmp_path, "big", "interlace-25-ft", "AI2D", **MADE | {key: other})
    check_timings_alike(load_results([first]).timings)
    for build in (build_ttft_table, build_ttft_figures):
        with pytest.raises(InputError) as caught:
            build([first, second], tmp_path / "out", models=MODELS, standin=[])
        assert f"{second}: {key} is {other!r}" in str(caught.value)
        assert str(first) in str(caught.value)


def test_versions_and_samples_are_compared_too(tmp_path):
    first = full_timing(tmp_path, "big", "interlace-10-ft", "AI2D", **TORCH)
    other = {"provenance": {"versions": {"torch": "2.8"}}}
    second = full_timing(tmp_path, "big", "interlace-25-ft", "POPE", **other)
    with pytest.raises(InputError, match=r"provenance\.versions\.torch is '2\.8', and '2\.7' in"):
        make_ttft_table(load_results([first, second]), PAPER, MODELS)
    fewer = full_timing(tmp_path, "big", "interlace-25-ft", "AI2D", tokens=(10,), **TORCH)
    with pytest.raises(InputError, match="num_samples is 1, and 2 in"):
        make_ttft_table(load_results([first, fewer]), PAPER, MODELS)


def test_what_may_differ_is_not_refused(tmp_path):
    files = [
        full_timing(tmp_path, "big", "interlace-10-ft", "AI2D", **MADE),
        # pixels of another benchmark; device and dtype of another model; a file that does not say
        full_timing(tmp_path, "big", "interlace-10-ft", "OCRBench", **MADE | {"min_pixels": 1}),
        full_timing(
            tmp_path, "small", "interlace-10-ft", "AI2D", **MADE | {"device": "A", "dtype": "f"}
        ),
        full_timing(tmp_path, "big", "interlace-25-ft", "AI2D", device=None),
    ]
    check_timings_alike(load_results(files).timings)
    mixed = [
        full_timing(tmp_path, "big", "wanda_2_4", "AI2D", kernels="dense"),
        full_timing(tmp_path, "big", "wanda_2_4", "POPE", kernels="semi_structured"),
    ]
    with pytest.raises(InputError, match="kernels is 'semi_structured'"):
        check_timings_alike(load_results(mixed).timings)


NAN = float("nan")


def with_sample(**changes):
    def change(body):
        body["samples"][1] |= changes
        for key, value in changes.items():
            if value is None:
                del body["samples"][1][key]

    return change


@pytest.mark.parametrize(
    ("key", "change"),
    [
        *((f"speedup is {v!r}", {"speedup": v}) for v in (0, -3.0, NAN, "fast", None, True, 9.0)),
        ("dense.mean_s is nan", {"dense": {"mean_s": NAN}}),
        ("dense.mean_s is 0", {"dense": {"mean_s": 0}}),
        ("dense.mean_s is 'fast'", {"dense": {"mean_s": "fast"}}),
        ("dense.mean_s is None", {"dense": {"mean_s": None}}),
        ("pruned.mean_s is 7.0", {"pruned": {"mean_s": 7.0}}),
        ("dense is 3", {"dense": 3}),
        ("split is 'x'", {"split": "x"}),
        ("decoder_speedup.ratio is 5.0", {"decoder_speedup": {"ratio": 5.0}}),
        ("roofline.speedup is nan", {"roofline": {"speedup": NAN}}),
        ("end_to_end.ratio is -1", {"end_to_end": {"ratio": -1}}),
        ("preprocessing.mean_s is inf", {"preprocessing": {"mean_s": float("inf")}}),
        ("num_samples is 3", {"num_samples": 3}),
        ("num_samples is 'x'", {"num_samples": "x"}),
        ("device is 3", {"device": 3}),
        ("dtype is ['x']", {"dtype": ["x"]}),
        *(
            ("speedup_interval is", {"speedup_interval": v})
            for v in ([1.0], [NAN, NAN], "x", [2.0, 1.0], [None, 1.0], {"low": 1}, [0, 1])
        ),
        *(("samples is", {"samples": v}) for v in ([], "x", [3])),
        ("samples[1].pruned_s is nan", with_sample(pruned_s=NAN)),
        ("samples[1].pruned_s is 0", with_sample(pruned_s=0)),
        ("samples[1].pruned_s is None", with_sample(pruned_s=None)),
        ("samples[1].visual_tokens is 'x'", with_sample(visual_tokens="x")),
        ("samples[1].dense_decoder_s is -1", with_sample(dense_decoder_s=-1)),
        ("samples[1].dense_roofline_s is 'x'", with_sample(dense_roofline_s="x")),
    ],
)
def test_hostile_files_are_refused_by_file_and_key(tmp_path, key, change):
    file = full_timing(tmp_path, "big", "interlace-25-ft", "AI2D")
    load_results([file])
    body = read_json(file)
    if callable(change):
        change(body)
    else:
        body |= change
    file.write_text(json.dumps(body))
    with pytest.raises(InputError) as caught:
        load_results([file])
    assert str(caught.value).startswith(f"{file}: {key}")
    assert "\n" not in str(caught.value)


def test_samples_without_tokens_are_refused_where_tokens_are_drawn(tmp_path):
    file = full_timing(tmp_path, "big", "interlace-25-ft", "AI2D")
    body = read_json(file)
    del body["samples"][1]["visual_tokens"]
    write_json(file, body)
    results = load_results([file])
    make_ttft_table(results, PAPER, MODELS)
    with pytest.raises(InputError, match=r"AI2D\.json: samples\[1\] has no visual_tokens"):
        draw_tokens(results, MODELS, PAPER, "interlace")


def test_a_model_that_the_config_lacks_is_refused(tmp_path):
    file = full_timing(tmp_path, "gone", "interlace-25-ft", "AI2D")
    with pytest.raises(InputError, match="model 'gone': not in the config's models"):
        make_ttft_table(load_results([file]), PAPER, MODELS)


def test_the_paper_s_many_samples_take_little_memory(tmp_path):
    file = full_timing(tmp_path, "big", "interlace-25-ft", "AI2D", tokens=tuple(range(1, 301)))
    body = read_json(file)
    for number, sample in enumerate(body["samples"]):
        sample |= {"index": str(number), "images": [[1, 8, 12]], "dense_end_to_end_s": 1.0}
    write_json(file, body)
    samples = load_results([file]).timings["big", "interlace-25-ft"]["AI2D"].samples
    assert sum(column.nbytes for column in samples.values()) < 300 * 100
