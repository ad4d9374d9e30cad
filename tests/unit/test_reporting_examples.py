"""The sheet of examples: which samples it shows, and that no answer can do harm to the page."""

import base64
import io
import re
from html.parser import HTMLParser

import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from interlace.errors import InputError
from interlace.evaluation.benchmarks import get_benchmark
from interlace.evaluation.outcomes import write_outcomes
from interlace.io import write_json
from interlace.reporting import examples
from interlace.reporting.examples import choose, compare, read_rows
from interlace.reporting.examples_page import shortened, write_examples
from tests.tiny_benchmarks import make_tiny_benchmarks

HOSTILE = '<script>alert("1")</script>&amp;<img src=x onerror=alert(1)>\x00\u202e</div></p>'
SCORES = {"dense": 62.5, "interlace-25-ft": 50.0}


def outcomes(indices, hits, said="A", **columns):
    table = pd.DataFrame({"index": [str(i) for i in indices], "hit": hits, "weight": 1.0})
    table["question"] = [f"q{i}" for i in table["index"]]
    table["value"] = table["hit"].fillna(0.0)
    said = [said] * len(table) if isinstance(said, str) else said
    return table.assign(
        prediction=said,
        answer="A",
        empty=[not s.strip() for s in said],
        new_tokens=7,
        finished=True,
    ).assign(**columns)


def write_result(root, variant, name, table, mode="cot", **changes):
    folder = root / "m" / "evaluation" / variant / mode
    folder.mkdir(parents=True, exist_ok=True)
    write_outcomes(folder / f"{name}.parquet", table)
    body = {
        "model": "m",
        "variant": variant,
        "mode": mode,
        "benchmark": name,
        "score": SCORES.get(variant, 1.0),
        "num_samples": len(table),
        "tsv": {"md5": "abc", "official": True},
        "fixture": False,
        "partial": False,
        "generation": {"max_new_tokens": 50},
        "grader": {"kind": "none", "model": None},
        **changes,
    }
    write_json(folder / f"{name}.json", body)
    return folder / f"{name}.json"


@pytest.fixture
def run(tmp_path):
    """Write a run with these tables per benchmark; return its result files, Dense's first."""

    def make(tables, pruned="interlace-25-ft", **changes):
        datasets = [get_benchmark(name).dataset for name in tables]
        make_tiny_benchmarks(tmp_path / "lmu", questions=4, datasets=datasets)
        for dataset in datasets:
            write_json(tmp_path / "lmu" / f"{dataset}.json", {"md5": "abc"})
        return [
            write_result(tmp_path, variant, name, pair[number], **changes)
            for number, variant in enumerate(("dense", pruned))
            for name, pair in tables.items()
        ]

    return make


def page(files, tmp_path, **changes):
    out = tmp_path / "page.html"
    write_examples(files, tmp_path / "lmu", out, **{"samples": 3, "label": "Model M"} | changes)
    return out.read_text(encoding="utf-8")


class Page(HTMLParser):
    """Collects tags, texts and what is left open."""

    def __init__(self, text):
        super().__init__()
        self.tags, self.open, self.images, self.texts = [], [], [], []
        self.feed(text)

    def handle_starttag(self, tag, attributes):
        self.tags.append(tag)
        if tag == "img":
            self.images.append(dict(attributes)["src"])
        if tag not in ("img", "meta"):
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.texts.append(data)


# -- Which samples ----------------------------------------------------------------------------------


def order(dense, pruned, samples=99, **columns):
    both = outcomes(range(len(dense)), dense).merge(
        outcomes(range(len(pruned)), pruned, **columns), on="index", suffixes=("_dense", "_pruned")
    )
    rows = choose(both, "AI2D", samples)
    return [(row["hit_dense"], row["hit_pruned"]) for row in rows]


def test_lost_and_won_in_turns_then_changes_then_the_rest():
    pairs = [(1, 1), (0.9, 0.6), (1, 0), (0, 0), (1, 0), (0.3, 1), (0, 1), (1, 0)]
    assert order(*zip(*pairs, strict=True))[:6] == [
        *((1, 0), (0, 1), (1, 0), (1, 0)),
        *((0.3, 1), (0.9, 0.6)),
    ]


def test_what_was_not_graded_is_no_change_and_comes_late():
    assert order([1, None, 1], [None, 1, 0])[0] == (1, 0)


def test_of_unchanged_ones_other_texts_come_first():
    both = outcomes(range(4), [1.0] * 4).merge(
        outcomes(range(4), [1.0] * 4, ["A", "A", "so A", "A"]),
        on="index",
        suffixes=("_dense", "_pruned"),
    )
    assert choose(both, "AI2D", 1)[0]["index"] == "2"


def test_one_row_per_question():
    """HR-Bench asks a question four times."""
    pair = [
        outcomes(range(8), hits, question=[f"q{i // 4}" for i in range(8)])
        for hits in ([1.0] * 8, [0.0] * 4 + [1.0] * 4)
    ]
    both = pair[0].merge(pair[1], on="index", suffixes=("_dense", "_pruned"))
    rows = choose(both, "HRBench4K", 5)
    assert [row["question_dense"] for row in rows] == ["q0", "q1"]


hits = st.lists(
    st.tuples(st.sampled_from([0, 0.3, 1]), st.sampled_from([0, 0.6, 1, None])),
    min_size=1,
    max_size=12,
)


@settings(max_examples=20, deadline=None)
@given(hits, st.integers(1, 6), st.randoms(use_true_random=False))
def test_the_order_of_the_file_does_not_matter(pairs, samples, random):
    both = outcomes(range(len(pairs)), [a for a, _ in pairs]).merge(
        outcomes(range(len(pairs)), pd.array([b for _, b in pairs], dtype="Float64").astype(float)),
        on="index",
        suffixes=("_dense", "_pruned"),
    )
    rows = choose(both, "AI2D", samples)
    assert len(rows) == min(samples, len(pairs))
    sizes = [abs(r["change"]) for r in rows]
    assert sizes == sorted(sizes, reverse=True)
    shuffled = both.sample(frac=1, random_state=random.randint(0, 99))
    assert [r["index"] for r in choose(shuffled, "AI2D", samples)] == [r["index"] for r in rows]


# -- Rows of a TSV ----------------------------------------------------------------------------------


def test_a_picture_may_be_another_rows(tmp_path, monkeypatch):
    """Rotations of MMBench name the row that has it, before or after them, chunks away."""
    make_tiny_benchmarks(tmp_path, questions=3, datasets=["MMBench_DEV_EN_V11"])
    tsv = tmp_path / "MMBench_DEV_EN_V11.tsv"
    monkeypatch.setattr(examples, "_ROWS_AT_ONCE", 2)
    whole = pd.read_csv(tsv, sep="\t", dtype=str).set_index("index")
    found = read_rows(tsv, ["2000001", "2"])
    assert found["2000001"]["image"] == whole["image"]["1"]
    assert found["2"]["image"] == whole["image"]["2"]
    whole.iloc[::-1].to_csv(tsv, sep="\t")
    assert read_rows(tsv, ["2000001", "2"]) == found
    with pytest.raises(InputError, match=r"MMBench_DEV_EN_V11\.tsv: no row has index 77"):
        read_rows(tsv, ["2", "77"])


def test_texts_are_not_read_as_numbers_or_nothing(tmp_path):
    table = {
        "index": ["0"],
        "image": ["x" * 80],
        "question": ["NA"],
        "answer": ["007"],
        "A": ["None"],
    }
    pd.DataFrame(table).to_csv(tmp_path / "t.tsv", sep="\t", index=False)
    row = read_rows(tmp_path / "t.tsv", ["0"])["0"]
    assert (row["question"], row["answer"], row["A"]) == ("NA", "007", "None")


def test_reading_ends_with_the_last_wanted_row(tmp_path, monkeypatch):
    make_tiny_benchmarks(tmp_path, questions=4, datasets=["AI2D_TEST"])
    tsv = tmp_path / "AI2D_TEST.tsv"
    monkeypatch.setattr(examples, "_ROWS_AT_ONCE", 1)
    with tsv.open("a", encoding="utf-8") as handle:
        handle.write('"torn')
    assert list(read_rows(tsv, ["1"])) == ["1"]


# -- The page ---------------------------------------------------------------------------------------


def test_everything_asked_for_is_on_the_page(run, tmp_path):
    files = run(
        {
            "AI2D": (outcomes(range(4), [1.0, 0, 1, 1]), outcomes(range(4), [0.0, 1, 1, 0], "B")),
            "TextVQA": (outcomes(range(4), [0.9] * 4), outcomes(range(4), [0.3, 0.9, 0.9, 0.9])),
        }
    )
    text = page(files, tmp_path)
    assert "Examples: Model M, Dense and INTERLACE 25 %" in text
    assert "accuracy: 62.5 → 50.0" in text
    counts = "hit by Dense alone: 2, by INTERLACE 25 % alone: 1, by both: 1, by neither: 0."
    assert f"Of 4 samples, {counts}" in text
    for badge in ("✓ hit", "✗ miss", "◐ 0.90 of 1", "◐ 0.30 of 1"):
        assert badge in text
    assert "What is the color of the picture?" in text
    assert "7 new tokens" in text
    assert re.search(r"<li class=\"text\">A\. (red|green|blue|yellow)</li>", text)
    assert re.search(r"<b>Answer:</b> [A-D]\. (red|green|blue|yellow)</p>", text)
    assert re.search(r"<b>Answer:</b> (red|green|blue|yellow) \(×10\)</p>", text)
    assert "Mode CoT, at most 50 new tokens" in text
    assert "stand-in" not in text
    assert "evaluation.limit" not in text
    found = Page(text)
    assert found.open == []
    assert len(found.images) == 6  # three of each benchmark
    for source in found.images:
        data = base64.b64decode(source.removeprefix("data:image/jpeg;base64,"))
        assert Image.open(io.BytesIO(data)).format == "JPEG"
    assert not re.search(r"(?:src|href)=\"(?!data:|#)", text)  # self-contained


def test_marks_of_stand_ins_parts_and_fixtures(run, tmp_path):
    tables = {"POPE": (outcomes(range(2), [1.0, 0]), outcomes(range(2), [1.0, 1]))}
    text = page(run(tables, partial=True, fixture=True), tmp_path, reasons=["stand-in models"])
    assert '<span class="standin">stand-in</span>' in text
    assert "stand-in models, benchmarks that are not the official files" in text
    assert "F1: 62.5† → 50.0†" in text
    assert "† from part of a benchmark (evaluation.limit)." in text


def test_answers_cannot_harm_the_page(run, tmp_path):
    said = [HOSTILE, "", " \n", "line 1\r\nline 2\tend"]
    pair = (outcomes(range(4), [1.0] * 4, said), outcomes(range(4), [0.0] * 4, "<b>no"))
    files = run({"AI2D": pair})
    tsv = tmp_path / "lmu" / "AI2D_TEST.tsv"
    table = pd.read_csv(tsv, sep="\t", dtype=str)
    table.assign(question=HOSTILE, A=HOSTILE, answer="A").to_csv(tsv, sep="\t", index=False)
    text = page(files, tmp_path, samples=4, label="<b>M")
    found = Page(text)
    assert found.open == []
    assert "script" not in found.tags
    assert len(found.images) == 4  # ours, not the answer's
    assert found.tags.count("b") == 4  # of "Answer:"
    assert "\x00" not in text
    shown = "".join(found.texts)
    assert '<script>alert("1")</script>&amp;<img src=x onerror=alert(1)>\ufffd' in shown
    assert "line 1\nline 2\tend" in shown
    assert text.count("(empty)") == 2


def test_control_characters_of_a_label_stay_out_of_the_title(run, tmp_path):
    text = page(run({"AI2D": (outcomes("01", [1, 0]), outcomes("01", [0, 1]))}), tmp_path,
                label="M\x00o\x1b[31m\x85del\u202e")  # fmt: skip
    assert "Examples: Mo[31mdel, " in text
    assert not any(
        (ord(c) < 32 and c != "\n") or 127 <= ord(c) < 160 or c == "\u202e" for c in text
    )


def test_long_answers_show_how_they_end_and_how_long_they_are(run, tmp_path):
    long = "so " * 40_000 + "the answer is C"
    tables = {"AI2D": (outcomes([0], [1.0], long, finished=False), outcomes([0], [0.0]))}
    text = page(run(tables), tmp_path)
    assert len(text) < 30_000
    assert "120,015 characters, shortened" in text
    assert "the answer is C</p>" in text
    assert "cut off" in text
    assert shortened("x" * 560) == "x" * 560
    assert shortened("x" * 600) == "x" * 360 + " […] " + "x" * 200


def test_what_is_not_known_is_not_made_up(run, tmp_path):
    unknown = {"new_tokens": None, "finished": None}
    tables = {"MIABench": (outcomes([0], [None], **unknown), outcomes([0], [0.5], **unknown))}
    text = page(run(tables, grader={"kind": "openai", "model": "rules<1>"}), tmp_path)
    assert "? not graded" in text
    assert "new token" not in re.sub(r"<ul>.*", "", text, flags=re.DOTALL)
    assert re.search(r"<b>Graded:</b> names the colour \w+; is in capital letters</p>", text)
    assert "MIA-Bench: graded by rules&lt;1&gt;." in text


def test_large_pictures_become_small(run, tmp_path):
    files = run({"VStar": (outcomes([0], [1.0]), outcomes([0], [0.0]))})
    buffer = io.BytesIO()
    Image.new("P", (1600, 400), 3).save(buffer, format="PNG")
    tsv = tmp_path / "lmu" / "VStarBench.tsv"
    table = pd.read_csv(tsv, sep="\t", dtype=str)
    table["image"] = base64.b64encode(buffer.getvalue()).decode()
    table.to_csv(tsv, sep="\t", index=False)
    (source,) = Page(page(files, tmp_path)).images
    assert Image.open(io.BytesIO(base64.b64decode(source.partition(",")[2]))).size == (256, 64)
    table.assign(image="abcd" * 40).to_csv(tsv, sep="\t", index=False)
    with pytest.raises(InputError, match=r"VStarBench\.tsv: the image of index 0 does not decode"):
        page(files, tmp_path)


def test_the_page_is_the_same_every_time(run, tmp_path):
    files = run({"AI2D": (outcomes(range(4), [1.0] * 4), outcomes(range(4), [0.0] * 4))})
    assert page(files, tmp_path) == page(files, tmp_path)


def test_mistakes_are_named(run, tmp_path):
    pair = (outcomes(range(4), [1.0] * 4), outcomes(range(4), [0.0] * 4))
    files = run({"AI2D": pair, "POPE": pair})
    with pytest.raises(InputError, match="not the same benchmarks"):
        page(files[:3], tmp_path)
    with pytest.raises(InputError, match=r"two variants of a model in one mode, not m/dense/cot$"):
        page(files[:2], tmp_path)
    other = write_result(tmp_path, "interlace-25-ft", "AI2D", pair[1], mode="limited")
    with pytest.raises(InputError, match="m/dense/cot, m/interlace-25-ft/limited"):
        page([files[0], other], tmp_path)
    write_result(tmp_path, "interlace-25-ft", "POPE", pair[1], generation={"max_new_tokens": 9})
    with pytest.raises(InputError, match=r"generation\.max_new_tokens is 50 and 9"):
        page(files, tmp_path)
    write_result(tmp_path, "interlace-25-ft", "POPE", outcomes(range(3), [1.0] * 3), partial=True)
    with pytest.raises(InputError, match=r"POPE\.json: its samples are not those of"):
        page(files, tmp_path)
    write_json(tmp_path / "lmu" / "AI2D_TEST.json", {"md5": "def"})
    with pytest.raises(InputError, match=r"AI2D\.json: made from another AI2D_TEST\.tsv"):
        compare(files[:1], files[2:3], tmp_path / "lmu", 3)
    write_json(tmp_path / "lmu" / "AI2D_TEST.json", {})
    with pytest.raises(InputError, match=r"AI2D_TEST\.json: no key 'md5'"):
        compare(files[:1], files[2:3], tmp_path / "lmu", 3)
    write_json(files[0], {"variant": "dense"})
    with pytest.raises(InputError, match=r"AI2D\.json: no key 'model'"):
        page(files, tmp_path)
    with pytest.raises(InputError, match=r"AI2D\.json: no key 'benchmark'"):
        compare(files[:1], files[2:3], tmp_path / "lmu", 3)
