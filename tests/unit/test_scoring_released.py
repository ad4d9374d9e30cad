"""Scores in the released code's layout, out and in; and windows.parquet itself."""

import json
import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from interlace.errors import InputError
from interlace.grid import Grid
from interlace.io import write_json
from interlace.scoring.packs import pack
from interlace.scoring.released import export_released, import_released
from interlace.scoring.released_files import released_files, released_names
from interlace.scoring.store import (
    Windows,
    longest_window,
    read_windows,
    window_list,
    write_windows,
)
from interlace.stamps import weights_record

LAYERS = 8


def made_up(num_samples=5, layers=LAYERS, seed=0, angles=True):
    """Windows of random scores, as the scoring pass would write them."""
    rng = np.random.default_rng(seed)
    windows = window_list(layers, range(1, longest_window(layers) + 1))
    counts = rng.integers(1, 50, (num_samples, 2)).astype(float)
    counts[0, 1] = 0
    sums = rng.uniform(-1, 1, (num_samples, len(windows), 2)) * counts[:, None]
    info = {
        "num_layers": layers, "model": "m", "model_digest": "d", "text": "conversation",
        "counts_known": True, "convention": "c", "settings": {}, "provenance": {}, "left_out": [],
    }  # fmt: skip
    return Windows(
        ids=[f"s/{i}" for i in range(num_samples)],
        subsets=[f"subset{i % 2}" for i in range(num_samples)],
        windows=windows,
        sums=sums.astype(np.float32).astype(np.float64),
        counts=counts,
        angles=rng.uniform(0, 1, (num_samples, len(windows))) if angles else None,
        info=info,
    )


@settings(deadline=None, max_examples=25)
@given(
    num_samples=st.integers(1, 6),
    layers=st.integers(3, 12),
    seed=st.integers(0, 9),
    angles=st.booleans(),
)
def test_windows_come_back_as_they_were_written(
    tmp_path_factory, num_samples, layers, seed, angles
):
    path = tmp_path_factory.mktemp("store") / "windows.parquet"
    windows = made_up(num_samples, layers, seed, angles)
    write_windows(path, windows)
    found = read_windows(path)
    for name in ("ids", "subsets", "windows", "info"):
        assert getattr(found, name) == getattr(windows, name), name
    np.testing.assert_array_equal(found.sums, windows.sums)
    np.testing.assert_array_equal(found.counts, windows.counts)
    if angles:
        np.testing.assert_allclose(found.angles, windows.angles, rtol=0, atol=1e-7)
    else:
        assert found.angles is None


def test_a_file_that_is_none_is_one_clear_error(tmp_path):
    import pyarrow as pa
    import pyarrow.parquet as pq

    with pytest.raises(InputError, match=r"none\.parquet: no such file"):
        read_windows(tmp_path / "none.parquet")
    torn = tmp_path / "torn.parquet"
    write_windows(torn, made_up())
    torn.write_bytes(torn.read_bytes()[:-100])
    other = tmp_path / "other.parquet"
    pq.write_table(pa.table({"id": ["a"]}), other)
    for path in (torn, other):
        with pytest.raises(InputError, match=rf"{path.name}: not a file of window scores") as error:
            read_windows(path)
        assert "\n" not in str(error.value)


def test_sums_over_no_tokens_and_negative_counts_are_refused(tmp_path):
    path = tmp_path / "windows.parquet"
    windows = made_up()
    counts = windows.counts.copy()
    for count, message in ((0, r"a sum that is not 0 over 0 text"), (-5, r"scores over -5 text")):
        counts[3, 0] = count
        write_windows(path, replace(windows, counts=counts))
        with pytest.raises(InputError, match=rf"the sample s/3 has {message} tokens\); delete it"):
            read_windows(path)
    sums = windows.sums.copy()
    counts[3], sums[3] = 0, 0
    write_windows(path, replace(windows, counts=counts, sums=sums))
    assert read_windows(path).counts[3].sum() == 0


def test_default_window_holds_what_every_method_needs():
    assert longest_window(36) == 13  # K <= 12 layers dropped, and the one kept before them
    assert [longest_window(layers) for layers in (3, 4, 6, 9)] == [3, 3, 3, 4]


@pytest.fixture
def exported(tmp_path):
    """A base checkpoint's folder, measured scores, and the three files made of them."""
    base = tmp_path / "base"
    base.mkdir()
    (base / "model.safetensors").write_bytes(b"weights")
    write_windows(tmp_path / "windows.parquet", made_up())
    names = released_names("m", "FineVision")
    export_released(tmp_path / "windows.parquet", tmp_path / "released", names)
    return tmp_path


def load(folder, num_layers=LAYERS):
    files = released_files(folder / "released")
    import_released(
        files, folder / "base", folder / "imported", model_key="m", num_layers=num_layers
    )
    return read_windows(folder / "imported" / "windows.parquet")


def test_export_is_the_released_layout(exported):
    windows = made_up()
    for size in (1, 2, 3):
        name = f"m_FineVision_pack{size}_hidden_state_similarities.json"
        body = json.loads((exported / "released" / name).read_text())
        # The released code stops at start L-k-1: the last layer is in no window.
        assert list(body) == [str(start) for start in range(LAYERS - size)]
        for start, values in body.items():
            sums = windows.sums[:, windows.windows.index((size, int(start)))]
            np.testing.assert_allclose(values, sums.sum(1) / windows.counts.sum(1), rtol=1e-12)


def test_round_trip_keeps_the_sample_means(exported):
    before, after = made_up(), load(exported)
    assert after.info["counts_known"] is False
    assert after.info["num_layers"] == LAYERS
    assert after.angles is None
    assert after.windows == window_list(LAYERS, (1, 2, 3))
    np.testing.assert_array_equal(after.counts, np.tile([1.0, 0.0], (5, 1)))
    for size in (1, 2, 3):
        ours, theirs = pack(before, size), pack(after, size)
        *inner, last = theirs
        for window, other in zip(ours, inner, strict=False):
            assert other["sample_mean"] == pytest.approx(window["sample_mean"], abs=1e-7)
            assert other["token_mean"] is other["text_mean"] is other["visual_mean"] is None
        assert last["start"] == LAYERS - size
        assert last["sample_mean"] is None
        body = json.loads((exported / "imported" / f"pack{size}.json").read_text())
        assert body["windows"] == theirs
        assert body["num_tokens"] is None


def test_files_are_found_by_folder_and_by_prefix(exported):
    folder = exported / "released"
    by_folder = released_files(folder)
    assert by_folder == released_files(folder / "m_FineVision")
    assert [path.name for path in by_folder] == released_names("m", "FineVision")
    with pytest.raises(InputError, match=r"n_FineVision_pack1.*: no such file"):
        released_files(folder / "n_FineVision")
    (folder / released_names("n", "FineVision")[1]).write_text("{}")
    with pytest.raises(InputError, match=r"2 files \*_pack2_.*one is needed"):
        released_files(folder)
    (folder / released_names("m", "FineVision")[1]).unlink()
    with pytest.raises(InputError, match=r"several models or datasets \(m_Fine.*, n_FineVision\)"):
        released_files(folder)


def test_the_grid_measures_in_shards_or_imports(exported):
    prefix = str(exported / "released" / "m_FineVision")
    config = {
        "run": "r",
        "models": {"a.b": {"scores": None}, "c": {"scores": prefix}},
        "data": {"path": "org/FineVision"},
        "scoring": {"shards": 3},
    }
    grid = Grid(config)
    shards = grid.shard_files("a.b")
    assert len(set(shards)) == 3
    assert shards[1] == grid.shard_file("a.b", "1")
    assert set(shards).isdisjoint(Grid(config | {"scoring": {"shards": 2}}).shard_files("a.b"))
    assert [Path(file).name for file in grid.released_files("m")] == released_names(
        "m", "FineVision"
    )
    assert grid.imported_files("c") == [str(file) for file in released_files(prefix)]
    measured, imported = (re.compile(grid.model_pattern(imported=i)) for i in (False, True))
    assert [bool(measured.fullmatch(m)) for m in ("a.b", "aXb", "c")] == [True, False, False]
    assert [bool(imported.fullmatch(m)) for m in ("a.b", "c")] == [False, True]
    none = Grid(config | {"models": {"c": {"scores": prefix}}}).model_pattern(imported=False)
    assert re.fullmatch(none, "c") is None


WRONG = {
    "missing start": (lambda body: body.pop("2"), r"pack2.*: start 2 is missing"),
    "unequal lengths": (lambda body: body["3"].pop(), r"pack2.*: start 3 has 4 samples, others .* 5"),
    "NaN": (lambda body: body["1"].__setitem__(4, float("nan")), r"pack2.*: sample 4 of start 1 is nan"),
    "null": (lambda body: body["1"].__setitem__(0, None), r"pack2.*: sample 0 of start 1 is None"),
    "no cosine": (lambda body: body["0"].__setitem__(0, 7.0), r"pack2.*: sample 0 of start 0 is 7"),
    "empty list": (lambda body: body.update({"0": []}), r"pack2.*: start 0 holds no list"),
    "deeper": (lambda body: body.update({"6": body["5"]}), r"pack2.*as for 9 layers; the model has 8"),
    "start twice": (lambda body: body.update({"01": body["1"]}), r"pack2.*: not an object from start"),
    "superscript": (lambda body: body.update({"²": body["1"]}), r"pack2.*: not an object from start"),
    "other keys": (lambda body: body.update({"x": []}), r"pack2.*: not an object from start"),
}  # fmt: skip


@pytest.mark.parametrize("case", WRONG)
def test_bad_files_are_one_clear_error_each(exported, case):
    change, message = WRONG[case]
    path = released_files(exported / "released")[1]
    body = json.loads(path.read_text())
    change(body)
    path.write_text(json.dumps(body))
    with pytest.raises(InputError, match=message) as error:
        load(exported)
    assert "\n" not in str(error.value)
    assert not (exported / "imported").exists()


def test_a_start_that_is_there_twice_is_refused(exported):
    path = released_files(exported / "released")[1]
    path.write_text(path.read_text().rstrip()[:-1] + ', "3": [0.1, 0.1, 0.1, 0.1, 0.1]}')
    with pytest.raises(InputError, match=r"pack2.*: start 3 is there 2 times"):
        load(exported)


def test_scores_of_another_depth_are_refused(exported):
    with pytest.raises(InputError, match=r"pack1.*as for 8 layers; the model has 12"):
        load(exported, num_layers=12)


def test_figure_4_draws_sample_means_where_token_means_are_unknown(exported):
    from interlace.reporting.figure_similarity import draw_figure4

    load(exported)
    packs = [
        json.loads((exported / "imported" / f"pack{size}.json").read_text()) for size in (1, 2, 3)
    ]
    (axes,) = draw_figure4({"M": packs}).axes
    assert axes.get_title("left") == "M, mean over samples"
    for size, line in zip((1, 2, 3), axes.get_lines(), strict=True):
        means = [window["sample_mean"] for window in packs[size - 1]["windows"][:-1]]
        assert line.get_ydata().tolist() == means


def test_a_plan_of_the_released_reading_is_the_same_from_both(exported):
    from interlace.selection.plan import write_plan

    write_json(
        exported / "base" / "config.json",
        {"model_type": "llama", "num_hidden_layers": LAYERS},
    )
    measured = made_up()
    info = measured.info | weights_record(exported / "base")
    write_windows(exported / "windows.parquet", replace(measured, info=info))
    load(exported)
    plans = []
    for source in (exported, exported / "imported"):
        write_plan(
            "interlace", 25, exported / "base", source / "plan.json",
            {"reading": "released", "protect": [], "modality": "all", "subsets": None},
            model_key="m", seed=0, windows=source / "windows.parquet",
        )  # fmt: skip
        plan = json.loads((source / "plan.json").read_text())
        starts = [triplet["start"] for triplet in plan["triplets"]]
        plans.append((plan["drop"], plan["tune"], starts))
    assert plans[0] == plans[1]
    assert len(plans[0][0]) == 2
    assert plan["calibration"]["imported_from"] == ["m_FineVision"]
    sheet = (exported / "imported" / "plan.md").read_text()
    assert "imported from the files of m_FineVision" in sheet
    assert "**warning**: scores were imported from files of m_FineVision; which weights" in sheet
    info = read_windows(exported / "imported" / "windows.parquet").info
    assert info["model_digest"] is info["provenance"]["model_revision"] is None
    assert info["imported_for"] == weights_record(exported / "base")["model_digest"]
    assert "model_files" not in info
