"""windows.parquet as scores: means in float64 by hand, choices of tokens and samples, bad files."""

from dataclasses import replace

import numpy as np
import pytest

from interlace.errors import InputError
from interlace.scoring.store import write_windows
from interlace.selection.scores import read_scores
from tests.unit.score_tables import plan, random_windows, save, table


def columns_of(windows, size):
    return [i for i, (of, _) in enumerate(windows.windows) if of == size]


@pytest.mark.parametrize("subsets", [None, ["b"]])
@pytest.mark.parametrize("modality", ["all", "text", "visual"])
def test_means_are_those_computed_by_hand(tmp_path, modality, subsets):
    windows = random_windows(9, samples=8)
    scores = read_scores(save(tmp_path / "windows.parquet", windows), "m", 9, modality, subsets)
    places = {"all": [0, 1], "text": [0], "visual": [1]}[modality]
    for size in (1, 2, 3, 4):
        for start, column in enumerate(columns_of(windows, size)):
            total = tokens = 0.0
            per_sample = []
            for row, subset in enumerate(windows.subsets):
                count = sum(windows.counts[row, p] for p in places)
                if (subsets and subset not in subsets) or not count:
                    continue
                value = sum(windows.sums[row, column, p] for p in places)
                total, tokens = total + value, tokens + count
                per_sample.append(value / count)
            assert scores.tokens(size)[start] == pytest.approx(total / tokens, rel=1e-12)
            mean = sum(per_sample) / len(per_sample)
            assert scores.samples(size)[start] == pytest.approx(mean, rel=1e-12)
    assert scores.calibration == {
        "text": "conversation", "modality": modality, "subsets": subsets,
        "num_samples": len(per_sample),
    }  # fmt: skip


def test_readings_choose_the_mean_and_the_windows(tmp_path):
    scores = read_scores(save(tmp_path / "w.parquet", random_windows(9)), "m", 9)
    assert scores.read(3, "paper") == scores.token_means[3]
    released = scores.read(3, "released")
    assert released == [*scores.sample_means[3][:-1], None]
    assert scores.token_means[3] != scores.sample_means[3]


def test_the_choice_of_samples_is_in_the_digest(tmp_path):
    path = save(tmp_path / "w.parquet", random_windows(9))
    digests = {
        read_scores(path, "m", 9, modality, subsets).digest
        for modality in ("all", "text")
        for subsets in (None, ["a"])
    }
    assert len(digests) == 4


def imported(layers=12):
    """Scores as they are imported: per-sample means, no window that holds the last layer."""
    windows = random_windows(layers, sizes=(1, 2, 3))
    means = windows.sums.sum(2) / windows.counts.sum(1)[:, None]
    sums = np.stack([means, np.zeros_like(means)], -1)
    for column, (size, start) in enumerate(windows.windows):
        if start + size == layers:
            sums[:, column] = np.nan
    counts = np.tile([1.0, 0.0], (len(windows.ids), 1))
    info = windows.info | {"counts_known": False, "text": "prompt"}
    return replace(windows, sums=sums, counts=counts, info=info)


def test_imported_scores_give_the_plan_of_the_released_code(tmp_path):
    measured = random_windows(12, sizes=(1, 2, 3))
    tables = [
        read_scores(save(tmp_path / f"{name}.parquet", windows), "m", 12)
        for name, windows in (("measured", measured), ("imported", imported()))
    ]
    for method in ("interlace", "interlace_oa", "interlace_tn", "consecutive", "shortgpt"):
        plans = [plan(method, 25, scores, reading="released") for scores in tables]
        assert plans[0].drop == plans[1].drop
        assert plans[0].tune == plans[1].tune
        assert "prompts only (scoring.text: prompt)" in plans[0].warnings[-1]
        assert not plans[1].warnings


def test_imported_scores_cannot_be_weighed_by_tokens(tmp_path):
    path = save(tmp_path / "w.parquet", imported())
    scores = read_scores(path, "m", 12)
    with pytest.raises(InputError, match=r"w\.parquet: .*no token counts.*plan\.reading: released"):
        plan("interlace", 25, scores)
    with pytest.raises(InputError, match=r"plan\.modality: .*do not tell visual tokens apart"):
        read_scores(path, "m", 12, "visual")
    with pytest.raises(InputError, match=r"layers 10\.\.11 were not measured"):
        plan("llm_streamline", 10, scores, reading="released")


def broken(windows, size, start, value):
    sums = windows.sums.copy()
    sums[1, windows.windows.index((size, start))] = value
    return replace(windows, sums=sums)


@pytest.mark.parametrize(
    ("make", "arguments", "message"),
    [
        (random_windows, ("other", 12), "scores of m, 12 layers; needed are other, 12 layers"),
        (random_windows, ("m", 36), "scores of m, 12 layers; needed are m, 36 layers: score"),
        (random_windows, ("m", 12, "sound"), r"plan\.modality: `sound` is none of all, text"),
        (random_windows, ("m", 12, "all", ["c"]), r"plan\.subsets: .* no sample of `c`; it has a, b"),
        (lambda n: broken(random_windows(n), 2, 3, np.nan), ("m", 12), r"layers 3\.\.4 is nan in"),
        (lambda n: broken(random_windows(n), 3, 0, np.inf), ("m", 12), r"layers 0\.\.2 is inf in"),
        (lambda n: broken(imported(n), 2, 10, [0.5, 0]), ("m", 12), r"layers 10\.\.11 is nan in"),
    ],
)  # fmt: skip
def test_wrong_scores_are_one_line_that_names_the_file(tmp_path, make, arguments, message):
    path = save(tmp_path / "windows.parquet", make(12))
    with pytest.raises(InputError, match=message) as raised:
        read_scores(path, *arguments)
    assert "\n" not in str(raised.value)
    assert "windows.parquet" in str(raised.value) or str(raised.value).startswith("plan.")


def test_a_size_that_is_missing_below_others_is_not_blamed_on_the_longest(tmp_path):
    scores = read_scores(save(tmp_path / "w.parquet", random_windows(12, sizes=(1, 2, 4))), "m", 12)
    message = r"windows of 1, 2, 4 layers, needed are those of 3; score this model again"
    with pytest.raises(InputError, match=message):
        plan("interlace", 25, scores)


def test_scores_of_no_token_at_all_are_not_blamed_on_the_modality(tmp_path):
    windows = random_windows(12)
    windows = replace(windows, counts=windows.counts * 0, sums=windows.sums * 0)
    path = save(tmp_path / "windows.parquet", windows)
    with pytest.raises(InputError, match=r"windows\.parquet: no sample has tokens; score"):
        read_scores(path, "m", 12)


def test_a_mean_beyond_that_of_cosines_is_refused(tmp_path):
    windows = random_windows(12)
    sums = windows.sums.copy()
    sums[2, windows.windows.index((3, 5))] *= 40
    path = save(tmp_path / "windows.parquet", replace(windows, sums=sums))
    message = r"windows\.parquet: the score of layers 5\.\.7 is \d+.* in a sample, no mean of cos"
    with pytest.raises(InputError, match=message):
        read_scores(path, "m", 12)
    for bad in (-1.01, 1.01):
        with pytest.raises(
            InputError, match=rf"scores: the score of layers 0\.\.0 is {bad}, no mean"
        ):
            table([bad] + [0.5] * 11)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda w: replace(w, windows=[*w.windows[:-1], (3, 99)]), "no window of 3 layers from 99"),
        (lambda w: replace(w, windows=[*w.windows[:-1], (0, 2)]), "no window of 0 layers from 2"),
        (lambda w: replace(w, windows=[*w.windows[:-1], (1, -1)]), "no window of 1 layers from -1"),
        (lambda w: replace(w, windows=[*w.windows[:-1], (2, 3)]), r"\(2, 3\) is there twice"),
        (lambda w: replace(w, ids=[*w.ids[:-1], "s0"]), "the sample s0 is there twice"),
        *(
            (
                lambda w, key=key: replace(w, info={k: v for k, v in w.info.items() if k != key}),
                f"its metadata lack `{key}`",
            )
            for key in ("model", "model_digest", "text", "counts_known")
        ),
    ],
)
def test_tables_that_cannot_be_are_no_window_scores(tmp_path, change, message):
    path = save(tmp_path / "w.parquet", change(random_windows(12)))
    with pytest.raises(InputError, match=rf"w\.parquet: not a file of window scores .*{message}"):
        read_scores(path, "m", 12)


def test_no_sample_with_an_image_is_said(tmp_path):
    windows = random_windows(12)
    counts, sums = windows.counts.copy(), windows.sums.copy()
    counts[:, 1] = sums[:, :, 1] = 0
    path = tmp_path / "w.parquet"
    write_windows(path, replace(windows, counts=counts, sums=sums))
    with pytest.raises(InputError, match=r"plan\.modality: .*no sample with visual tokens"):
        read_scores(path, "m", 12, "visual")


def test_windows_that_are_too_short_for_a_method_name_the_setting(tmp_path):
    scores = read_scores(save(tmp_path / "w.parquet", random_windows(12, sizes=(1, 2, 3))), "m", 12)
    plan("interlace", 25, scores)
    with pytest.raises(InputError, match=r"w\.parquet: .*1, 2, 3 layers.*scoring\.max_window to 4"):
        plan("llm_streamline", 25, scores)


def test_a_missing_window_is_said_by_the_method_that_needs_it(tmp_path):
    windows = random_windows(12)
    place = windows.windows.index((3, 4))
    fewer = replace(
        windows,
        windows=[w for w in windows.windows if w != (3, 4)],
        sums=np.delete(windows.sums, place, axis=1),
    )
    scores = read_scores(save(tmp_path / "w.parquet", fewer), "m", 12)
    plan("shortgpt", 25, scores)
    with pytest.raises(InputError, match=r"w\.parquet: layers 4\.\.6 were not measured"):
        plan("interlace", 25, scores)


def test_files_that_are_none(tmp_path):
    with pytest.raises(InputError, match=r"w\.parquet: no such file"):
        read_scores(tmp_path / "w.parquet", "m", 12)
    (tmp_path / "w.parquet").write_bytes(b"PAR1")
    with pytest.raises(InputError, match=r"w\.parquet: not a file of window scores"):
        read_scores(tmp_path / "w.parquet", "m", 12)
