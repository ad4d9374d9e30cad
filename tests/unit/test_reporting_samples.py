"""The table of counts and bytes per subset."""

import csv

from interlace.io import write_json
from interlace.reporting.samples import write_samples_table

COMMIT = "0123456789abcdef0123456789abcdef01234567"


def counts(**changed):
    return {
        "rows": 1000, "target": 10, "drawn": 12, "kept": 10, "records": 10, "short": 0, "images": 9,
        "row_groups": 1, "bytes_fetched": 1_234_567, "bytes_kept": 1_000_000, "calibration": 1,
        "footer_bytes": 64_000, "refused_shards": 0, "refused_rows": 0,
        "rejected": {"too_many_turns": 2, "missing_image": 0},
    } | changed  # fmt: skip


def table(tmp_path, body):
    write_json(tmp_path / "samples.json", body)
    write_samples_table(tmp_path / "samples.json", tmp_path / "t", [])
    with (tmp_path / "t.csv").open(encoding="utf-8") as stream:
        rows = list(csv.DictReader(stream))
    return rows, (tmp_path / "t.md").read_text(), (tmp_path / "t.html").read_text()


def test_bytes_are_exact_for_machines_and_short_for_people(tmp_path):
    address = f"hf://datasets/org/name@{COMMIT}"
    body = {
        "source": "hf://datasets/org/name", "address": address, "revision": COMMIT,
        "subsets": {"a(b)+": counts()}, "total": counts(),
    }  # fmt: skip
    rows, markdown, html = table(tmp_path, body)
    assert rows[0]["bytes_fetched"] == "1234567"
    assert rows[1]["bytes_kept"] == "1000000"
    for text in (markdown, html):
        assert "1.23 MB" in text
        assert "1.30 times" in text
        assert "64 kB" in text or "64.0 kB" in text
        assert f"Source: {address}." in text
    assert "rejected: too_many_turns" in rows[0]
    for name in ("rejected: missing_image", "records", "refused_shards", "cut"):
        assert name not in rows[0]


def test_records_and_refused_shards_show_where_there_are_any(tmp_path):
    subset = counts(records=25, refused_shards=2, refused_rows=77, cut=3)
    body = {"source": "folder", "subsets": {"s": subset}, "total": subset}
    rows, markdown, _ = table(tmp_path, body)
    assert (rows[0]["records"], rows[0]["refused_shards"], rows[0]["cut"]) == ("25", "2", "3")
    assert rows[0]["refused_rows"] == "77"
    assert "refused rows: 77 that those shards announce" in markdown
    assert "samples.json names them" in markdown
    assert "Source: folder." in markdown


def test_sizes_read_well(tmp_path):
    for size, text in (
        (0, "0 B"), (999, "999 B"), (1000, "1 kB"), (99_960, "100 kB"), (999_999, "1 MB"),
        (5_000_000_000_000, "5 TB"), (7e15, "7000 TB"),
    ):  # fmt: skip
        subset = counts(bytes_kept=int(size), bytes_fetched=0)
        _, markdown, _ = table(tmp_path, {"subsets": {"s": subset}, "total": subset})
        assert f"| {text} |" in markdown, size


def test_what_fell_short_was_dropped_or_stands_apart_is_said(tmp_path):
    whole = counts(calibration=1, calibration_wanted=1)
    short = counts(
        kept=7, short=3, calibration=3, calibration_wanted=1, dropped_fields=["images.alt", "id"]
    )
    subsets = {f"s{n}": short for n in range(7)} | {"whole": whole}
    body = {
        "settings": {"calibration_fraction": 0.1},
        "subsets": subsets,
        "apart": {"s3": "its columns contradict those of other shards"},
        "passed_over": ["s0/test-0.parquet", "top.parquet"],
        "total": whole | {"short": 21, "calibration": 22, "calibration_wanted": 8},
    }
    rows, markdown, html = table(tmp_path, body)
    by_name = {row["subset"]: row for row in rows}
    assert (by_name["s0"]["calibration"], by_name["s0"]["calibration_wanted"]) == ("3", "1")
    assert by_name["s0"]["short"] == "3"
    for text in (markdown, html):
        for said in (
            "short: 7 subsets have no row left to draw: s0 (7 of 10), s1 (7 of 10), s2 (7 of 10), "
            "s3 (7 of 10), s4 (7 of 10) and 2 more.",
            "calibration: 22 samples; wanted: 8, 10 % of what is kept; the samples of one source row",
            "not written: `images.alt` of s0, s1, s2, s3, s4 and 2 more",
            "not written: `id` of s0",
            "s3 cannot be loaded as one table",
            "passed over: 2 Parquet files of other splits or beside the subsets, first s0/test-0",
        ):
            assert said in text.replace("&#x27;", "'"), said


def test_what_went_as_wanted_takes_one_line(tmp_path):
    subset = counts(calibration=1, calibration_wanted=1, dropped_fields=[])
    body = {
        "settings": {"calibration_fraction": 0.125}, "subsets": {"s": subset}, "apart": {},
        "passed_over": [], "total": subset,
    }  # fmt: skip
    rows, markdown, _ = table(tmp_path, body)
    assert "calibration_wanted" not in rows[0]
    assert "calibration: 1 samples; wanted: 1, 12.5 % of what is kept." in markdown
    for word in ("not written", "as one table", "passed over", "no row left"):
        assert word not in markdown
