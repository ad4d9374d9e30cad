"""The merged samples: calibration and fine-tuning splits, records of domain sets, resuming."""

import json
from fractions import Fraction

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from interlace.data.chat import load_records
from interlace.errors import InputError
from interlace.io import folder_digest
from interlace.sampling import run
from interlace.sampling.conversations import import_conversations
from interlace.sampling.merge import calibration_quota, calibration_split
from tests.tiny import make_tiny_finevision
from tests.unit.sample_rows import draw_samples, manifest, png, row, write


@given(
    st.lists(st.integers(0, 40), min_size=1, max_size=8).filter(any),
    st.sampled_from([0.01, 0.1, 0.29, 0.5, 1.0]),
    st.integers(0, 9),
)
def test_the_calibration_split_has_its_size_and_its_strata(sizes, fraction, seed):
    subsets = np.array([f"s{i}" for i, n in enumerate(sizes) for _ in range(n)], dtype=object)
    kept = np.random.default_rng(seed).random(len(subsets)) < 0.8
    if not kept.any():
        kept[0] = True
    rows = np.arange(len(subsets)).astype(str).astype(object)
    chosen = calibration_split(subsets, rows, kept, fraction, seed)
    assert chosen.sum() == max(1, round(Fraction(str(fraction)) * int(kept.sum())))
    assert not (chosen & ~kept).any()
    for name in set(subsets):
        share = fraction * kept[subsets == name].sum()
        assert share - 1 <= chosen[subsets == name].sum() <= share + 1 + 1e-9
    assert (calibration_split(subsets, rows, kept, fraction, seed) == chosen).all()


@given(
    st.lists(st.lists(st.integers(1, 6), min_size=1, max_size=30), min_size=1, max_size=4),
    st.sampled_from([0.05, 0.1, 0.5, 1.0]),
    st.integers(0, 9),
)
def test_the_samples_of_one_source_row_fall_on_the_same_side(subsets, fraction, seed):
    """`subsets`: samples of each source row."""
    places = [
        (f"s{i}", f"s{i}/{k}") for i, rows in enumerate(subsets) for k, n in enumerate(rows)
        for _ in range(n)
    ]  # fmt: skip
    names, rows = (np.array(column, dtype=object) for column in zip(*places, strict=True))
    kept = np.ones(len(rows), dtype=bool)
    chosen = calibration_split(names, rows, kept, fraction, seed)
    assert chosen.any()
    assert not set(rows[chosen]) & set(rows[~chosen])
    wanted = calibration_quota(names, kept, fraction)
    assert sum(wanted.values()) == max(1, round(Fraction(str(fraction)) * len(rows)))
    for number, sizes in enumerate(subsets):
        missed = abs(chosen[names == f"s{number}"].sum() - wanted[f"s{number}"])
        assert missed < max(sizes)
        unused = [n for k, n in enumerate(sizes) if not chosen[rows == f"s{number}/{k}"].any()]
        if chosen[names == f"s{number}"].sum() < wanted[f"s{number}"] and sum(wanted.values()) > 1:
            assert min(unused) >= 2 * missed, "another whole row would have come nearer"


def test_no_question_is_calibrated_on_and_tuned_on_when_held_out(tmp_path):
    folder = tmp_path / "in" / "data"
    folder.mkdir(parents=True)
    image = {"bytes": png(), "path": None}
    rows = [
        {"image": image, "question": f"q{i}", "answers": [f"a{i}", f"b{i}", f"c{i}", "z", "z"]}
        for i in range(30)
    ]
    pq.write_table(pa.Table.from_pylist(rows), folder / "train-0.parquet", row_group_size=7)
    settings = {"fraction": 1.0, "format": "textvqa", "calibration_held_out": True}
    draw_samples(tmp_path / "in", tmp_path / "out", settings, seed=0)
    entries = manifest(tmp_path / "out")
    sides = [
        {(e["row_group"], e["row"]) for e in entries if e[side]}
        for side in ("calibration", "finetune")
    ]
    assert [len(side) for side in sides] == [3, 27]
    assert not sides[0] & sides[1]
    body = json.loads((tmp_path / "out" / "samples.json").read_text())
    assert (body["total"]["calibration"], body["total"]["calibration_wanted"]) == (12, 12)


def test_the_manifest_has_the_bytes_of_every_image_and_row(tmp_path):
    write(tmp_path / "in" / "s", [row(user="x" * 1000, images=2), row(images=0), row(turns=9)])
    draw_samples(tmp_path / "in", tmp_path / "out", {"fraction": 1.0}, seed=0)
    entries = {entry["row"]: entry for entry in manifest(tmp_path / "out")}
    assert entries[0]["image_bytes"] == [len(png())] * 2
    assert entries[1]["image_bytes"] == []
    assert entries[0]["row_bytes"] > 1000 + 2 * len(png())
    assert 0 < entries[1]["row_bytes"] < entries[0]["row_bytes"] - 1000
    assert (entries[2]["image_bytes"], entries[2]["row_bytes"]) == (None, None)


def test_calibration_samples_are_tuned_on_unless_held_out(tmp_path):
    make_tiny_finevision(tmp_path / "in", rows=10)
    settings = {"fraction": 1.0, "calibration_fraction": 0.3}
    draw_samples(tmp_path / "in", tmp_path / "both", settings, seed=0)
    draw_samples(
        tmp_path / "in", tmp_path / "apart", settings | {"calibration_held_out": True}, seed=0
    )
    everything = set(load_records(tmp_path / "both").ids)
    calibration = set(load_records(tmp_path / "both", calibration_only=True).ids)
    assert (len(everything), len(calibration)) == (40, 12)
    assert calibration < everything
    assert set(load_records(tmp_path / "apart", calibration_only=True).ids) == calibration
    assert set(load_records(tmp_path / "apart").ids) == everything - calibration


def test_nothing_left_to_tune_on_is_refused(tmp_path):
    write(tmp_path / "in" / "s", [row()] * 3)
    settings = {"fraction": 1.0, "calibration_fraction": 1.0, "calibration_held_out": True}
    with pytest.raises(InputError, match=r"data\.calibration_held_out"):
        draw_samples(tmp_path / "in", tmp_path / "out", settings, seed=0)


def test_a_domain_set_has_a_record_and_a_manifest_row_per_answer(tmp_path):
    folder = tmp_path / "in" / "data"
    folder.mkdir(parents=True)
    image = {"bytes": png(), "path": None}
    rows = [
        {"image": image, "query": f"q{i}", "label": ["a", "b", "a"][: 1 + i % 3],
         "human_or_machine": 0} for i in range(9)
    ]  # fmt: skip
    pq.write_table(pa.Table.from_pylist(rows), folder / "train-00000-of-00001.parquet")
    pq.write_table(pa.Table.from_pylist(rows), folder / "test-00000-of-00001.parquet")
    settings = {"fraction": 1.0, "format": "chartqa"}
    draw_samples(tmp_path / "in", tmp_path / "out", settings, seed=0)
    body = json.loads((tmp_path / "out" / "samples.json").read_text())
    assert (body["total"]["rows"], body["total"]["kept"], body["total"]["records"]) == (9, 9, 15)
    assert body["provenance"]["num_samples"] == 15
    assert body["passed_over"] == ["data/test-00000-of-00001.parquet"]
    records = {record.id: record for record in load_records(tmp_path / "out")}
    entries = manifest(tmp_path / "out")
    assert {entry["id"] for entry in entries} == set(records)
    assert len(records) == 15
    for entry in entries:
        turn = records[entry["id"]].turns[0]
        assert entry["num_chars"] == len(turn["user"]) + len(turn["assistant"])
        assert turn["user"] == f"q{entry['row']}"


def test_counts_say_what_every_subset_gave_and_what_was_left_out(tmp_path):
    write(tmp_path / "in" / "good", [row(user=f"{i}") for i in range(20)])
    (tmp_path / "in" / "bad").mkdir()
    pq.write_table(pa.table({"texts": pa.nulls(1)}), tmp_path / "in" / "bad" / "0.parquet")
    draw_samples(tmp_path / "in", tmp_path / "out", {"fraction": 0.5}, seed=0)
    body = json.loads((tmp_path / "out" / "samples.json").read_text())
    assert list(body["subsets"]) == ["bad", "good"]
    bad, good, total = body["subsets"]["bad"], body["subsets"]["good"], body["total"]
    assert set(bad) == set(good)
    assert (bad["kept"], bad["refused_shards"], good["refused_shards"]) == (0, 1, 0)
    assert (bad["refused_rows"], good["refused_rows"], total["refused_rows"]) == (1, 0, 1)
    assert "no column `images`" in bad["refused"]["0.parquet"]
    assert (total["kept"], total["refused_shards"], total["shards"]) == (10, 1, 2)
    assert "refused" not in total
    file = tmp_path / "out" / "good" / "train-00000-of-00001.parquet"
    assert good["bytes_kept"] == file.stat().st_size
    assert good["bytes_fetched"] > 0
    assert body["expected"]["row_group"]["rows"] == 10
    assert "workers" not in body["settings"]


def test_a_killed_run_goes_on_and_a_changed_one_begins_anew(tmp_path, monkeypatch):
    make_tiny_finevision(tmp_path / "in", rows=8)
    settings = {"fraction": 0.5}
    draw_samples(tmp_path / "in", tmp_path / "whole", settings, seed=0)
    drawn = []
    real = run.draw_subset

    def counted(planned, subset, *rest):
        if len(drawn) == 2:
            raise KeyboardInterrupt
        real(planned, subset, *rest)
        drawn.append(subset)

    monkeypatch.setattr(run, "draw_subset", counted)
    with pytest.raises(KeyboardInterrupt):
        draw_samples(tmp_path / "in", tmp_path / "out", settings, seed=0)
    monkeypatch.setattr(run, "draw_subset", lambda *args: (drawn.append(args[1]), real(*args)))
    draw_samples(tmp_path / "in", tmp_path / "out", settings | {"workers": 2}, seed=0)
    assert sorted(drawn) == sorted(p.name for p in (tmp_path / "in").iterdir())
    assert folder_digest(tmp_path / "out") == folder_digest(tmp_path / "whole")
    assert not list(tmp_path.glob(".*"))

    monkeypatch.setattr(run, "draw_subset", counted)
    drawn.clear()
    with pytest.raises(KeyboardInterrupt):
        draw_samples(tmp_path / "in", tmp_path / "again", settings, seed=0)
    monkeypatch.setattr(run, "draw_subset", real)
    draw_samples(tmp_path / "in", tmp_path / "again", settings, seed=1)
    draw_samples(tmp_path / "in", tmp_path / "seed1", settings, seed=1)
    assert folder_digest(tmp_path / "again") == folder_digest(tmp_path / "seed1")


@pytest.mark.parametrize("name", ["samples.json", "manifest.parquet", "import.json"])
def test_no_subset_is_named_as_a_file_beside_the_subsets(tmp_path, name):
    messages = [{"from": "human", "value": "q"}, {"from": "gpt", "value": "a"}]
    items = [{"conversations": messages, "subset": subset} for subset in ("good", name)]
    (tmp_path / "in.json").write_text(json.dumps(items))
    counts = import_conversations(tmp_path / "in.json", tmp_path / "out")
    assert counts["left_out"] == {"a `subset` with the name of a file of ours": 1}
    draw_samples(tmp_path / "out", tmp_path / "samples", {"fraction": 1.0}, seed=0)
    assert [entry["subset"] for entry in manifest(tmp_path / "samples")] == ["good"]
