"""ChartQA, TextVQA and ScienceQA in the columns they have on the hub."""

import io

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from interlace.sampling.rows import examine, kept_schema, schema_complaint
from interlace.sampling.settings import complete

IMAGE = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
STRINGS = pa.list_(pa.string())
CHARTQA = pa.schema(
    [
        ("image", IMAGE),
        ("query", pa.string()),
        ("label", STRINGS),
        ("human_or_machine", pa.int64()),
    ],
    metadata={"huggingface": "{not even JSON"},
)
TEXTVQA = pa.schema(
    [
        ("image_id", pa.string()),
        ("question_id", pa.int32()),
        ("question", pa.string()),
        ("question_tokens", STRINGS),
        ("image", IMAGE),
        ("image_width", pa.int32()),
        ("image_height", pa.int32()),
        ("flickr_original_url", pa.string()),
        ("flickr_300k_url", pa.string()),
        ("answers", STRINGS),
        ("image_classes", STRINGS),
        ("set_name", pa.string()),
        ("ocr_tokens", STRINGS),
    ]
)
SCIENCEQA = pa.schema(
    [
        ("image", IMAGE),
        ("question", pa.string()),
        ("choices", STRINGS),
        ("answer", pa.int8()),
        *((name, pa.string()) for name in ("hint", "task", "grade", "subject", "topic")),
        *((name, pa.string()) for name in ("category", "skill", "lecture", "solution")),
    ]
)
SCHEMAS = {"chartqa": CHARTQA, "textvqa": TEXTVQA, "scienceqa": SCIENCEQA}


def settings(format):
    return complete({"format": format})


def picture():
    buffer = io.BytesIO()
    Image.new("RGB", (20, 10), "navy").save(buffer, "PNG")
    return {"bytes": buffer.getvalue(), "path": "chart.png"}


def row(format, **columns):
    examples = {
        "chartqa": {
            "image": picture(), "query": "What is the highest bar?", "label": ["14"],
            "human_or_machine": 1,
        },
        "textvqa": {
            "image": picture(), "question": "What brand is it?", "question_id": 7,
            "answers": ["Dakota", "dakota", "dakota digital", "dakota", *["dakota"] * 6],
            "set_name": "train",
        },
        "scienceqa": {
            "image": None, "question": "Which is a mineral?", "choices": ["quartz", "wood"],
            "answer": 0, "hint": "Minerals are solid.", "lecture": "", "grade": "grade4",
        },
    }  # fmt: skip
    return pa.Table.from_pylist([examples[format] | columns], schema=SCHEMAS[format])


def texts(verdict):
    return [values["texts"][0].as_py()[0] for values in verdict.rows]


def reason(format, **columns):
    entry = examine(row(format, **columns), settings(format)).entry
    assert entry["status"] == "rejected"
    return entry["reason"]


def test_chartqa_has_a_record_for_its_answer():
    verdict = examine(row("chartqa"), settings("chartqa"))
    assert texts(verdict) == [{"user": "What is the highest bar?", "assistant": "14"}]
    assert verdict.suffixes == ["/a0"]
    assert verdict.entry == {
        "status": "kept", "reason": None, "detail": None, "num_images": 1, "num_turns": 1,
        "num_chars": 26, "image_sizes": [[20, 10]], "image_bytes": verdict.entry["image_bytes"],
    }  # fmt: skip
    assert verdict.rows[0]["images"][0].as_py() == [picture()]


def test_textvqa_has_a_record_per_distinct_answer_in_their_order():
    verdict = examine(row("textvqa"), settings("textvqa"))
    assert [t["assistant"] for t in texts(verdict)] == ["Dakota", "dakota", "dakota digital"]
    assert {t["user"] for t in texts(verdict)} == {"What brand is it?"}
    assert verdict.suffixes == ["/a0", "/a1", "/a2"]
    assert verdict.num_chars == [17 + 6, 17 + 6, 17 + 14]
    assert {values["question_id"][0].as_py() for values in verdict.rows} == {7}


def test_scienceqa_letters_its_choices_and_gives_the_hint():
    verdict = examine(row("scienceqa", answer=1), settings("scienceqa"))
    user = "Hint: Minerals are solid.\nWhich is a mineral?\nA) quartz\nB) wood"
    assert texts(verdict) == [{"user": user, "assistant": "B) wood"}]
    assert (verdict.entry["num_images"], verdict.entry["image_sizes"]) == (0, [])
    assert verdict.rows[0]["images"][0].as_py() == []
    for hint in ("", None):
        (text,) = texts(examine(row("scienceqa", hint=hint), settings("scienceqa")))
        assert text["user"].startswith("Which is a mineral?")
    seen = examine(row("scienceqa", image=picture()), settings("scienceqa"))
    assert seen.entry["image_sizes"] == [[20, 10]]


@pytest.mark.parametrize(
    ("format", "columns", "expected"),
    [
        ("chartqa", {"label": []}, "unusable_text"),
        ("chartqa", {"label": None}, "unusable_text"),
        ("chartqa", {"label": ["", None]}, "unusable_text"),
        ("chartqa", {"query": " "}, "unusable_text"),
        ("chartqa", {"image": {"bytes": b"x", "path": None}}, "undecodable_image"),
        ("chartqa", {"image": {"bytes": None, "path": "a.png"}}, "missing_image"),
        ("textvqa", {"answers": [""] * 10}, "unusable_text"),
        ("textvqa", {"question": None}, "unusable_text"),
        ("scienceqa", {"answer": 2}, "unusable_text"),
        ("scienceqa", {"answer": -1}, "unusable_text"),
        ("scienceqa", {"answer": None}, "unusable_text"),
        ("scienceqa", {"choices": None}, "unusable_text"),
        ("scienceqa", {"choices": ["a", None]}, "unusable_text"),
        ("scienceqa", {"choices": ["a"] * 27}, "unusable_text"),
        ("scienceqa", {"hint": "a\0b"}, "unusable_text"),
    ],
)
def test_rows_without_a_question_are_named(format, columns, expected):
    assert reason(format, **columns) == expected


@pytest.mark.parametrize("format", SCHEMAS)
def test_what_is_written_has_the_columns_that_were_promised(format, tmp_path):
    pq.write_table(row(format), tmp_path / "train.parquet")
    source = pq.read_table(tmp_path / "train.parquet")
    assert schema_complaint(source.schema, settings(format)) is None
    schema = kept_schema(source.schema, settings(format))
    assert schema.names[:2] == ["images", "texts"]
    assert "image" not in schema.names
    assert set(SCHEMAS[format].names) - {"image"} <= set(schema.names)
    for values in examine(source, settings(format)).rows:
        assert values.schema.equals(schema)


def test_another_format_is_named():
    complaint = schema_complaint(CHARTQA, settings("textvqa"))
    assert complaint.startswith("no column `question`")
    assert "image, question, answers" in complaint
    flat = pa.schema([("image", pa.binary()), ("query", pa.string()), ("label", STRINGS)])
    assert "must be a struct with bytes" in schema_complaint(flat, settings("chartqa"))


@pytest.mark.parametrize("format", SCHEMAS)
def test_datasets_loads_the_records(format, tmp_path):
    datasets = pytest.importorskip("datasets")
    rows = examine(row(format), settings(format)).rows
    schema = kept_schema(SCHEMAS[format], settings(format))
    table = pa.concat_tables(rows).cast(schema)
    table = table.append_column("id", pa.array([str(n) for n in range(len(rows))]))
    pq.write_table(table, tmp_path / "a.parquet")
    loaded = datasets.load_dataset(
        "parquet", data_files=str(tmp_path / "a.parquet"), cache_dir=str(tmp_path / "cache"),
        split="train",
    )  # fmt: skip
    assert loaded["texts"][0] == rows[0]["texts"][0].as_py()
    assert [image.size for image in loaded[0]["images"]] == (
        [] if format == "scienceqa" else [(20, 10)]
    )


def test_questions_of_more_answers_or_choices_than_a_question_has_are_left_out():
    assert reason("textvqa", answers=["a"] * 1001) == "unusable_text"
    assert reason("scienceqa", choices=["a"] * 27) == "unusable_text"
    assert len(texts(examine(row("textvqa", answers=["a"] * 1000), settings("textvqa")))) == 1


@pytest.mark.parametrize("format", ["chartqa", "textvqa"])
def test_a_question_about_an_image_that_is_not_there_is_left_out(format):
    assert reason(format, image=None) == "missing_image"
    assert reason(format, image={"bytes": None, "path": "a.png"}) == "missing_image"
    assert examine(row("scienceqa", image=None), settings("scienceqa")).entry["num_images"] == 0


def test_blanks_around_an_answer_make_no_other_of_it():
    answers = ["coke ", "coke", "\tcoke\n", "Coke", "diet coke", " "]
    verdict = examine(row("textvqa", answers=answers), settings("textvqa"))
    assert [t["assistant"] for t in texts(verdict)] == ["coke", "Coke", "diet coke"]
    assert verdict.suffixes == ["/a0", "/a1", "/a2"]
    assert verdict.entry["num_chars"] == len("What brand is it?coke")
    label = examine(row("chartqa", label=["14 ", "14"]), settings("chartqa"))
    assert [t["assistant"] for t in texts(label)] == ["14"]


def test_an_image_with_fields_that_python_cannot_hold_is_read():
    far = pa.array([2**62]).cast(pa.timestamp("us"))
    data = picture()
    column = pa.StructArray.from_arrays(
        [pa.array([data["bytes"]]), pa.array([data["path"]]), far], ["bytes", "path", "taken"]
    )
    values = row("chartqa").set_column(0, "image", column)
    (kept,) = examine(values, settings("chartqa")).rows
    assert kept["images"].to_pylist() == [[data]]
