"""The domain-specific sets, ChartQA, TextVQA and ScienceQA, as records like FineVision's.

The paper fine-tunes on their train splits as well, one record per distinct answer. Their columns
on the hub (data cards of the repositories; an image is the struct {bytes, path} of `datasets`):

- `chartqa`, HuggingFaceM4/ChartQA, `data/{train,val,test}-*`, 28,299 rows in train: image, query
  (string), label (list of strings), human_or_machine (class label 0/1 as int64).
- `textvqa`, lmms-lab/textvqa, `data/{train,validation,test}-*`, 34,602 rows in train: image_id
  (string), question_id (int32), question (string), question_tokens (list of strings), image,
  image_width, image_height (int32), flickr_original_url, flickr_300k_url (strings), answers (list
  of ten strings), image_classes (list of strings), set_name (string), ocr_tokens (list of strings).
  facebook/textvqa has the same columns but the last, as Parquet under its revision
  `refs/convert/parquet` only, a folder per split.
- `scienceqa`, derek-thomas/ScienceQA, `data/{train,validation,test}-*`, 12,726 rows in train:
  image (null in about half of the rows), question (string), choices (list of strings), answer
  (int8, index of the right choice), hint, task, grade, subject, topic, category, skill, lecture,
  solution (strings, empty where there is none).

The listing of shards passes over the other splits (`interlace.sampling.source.list_shards`): they
are what models are tested on.

Choices are lettered `A) ...` on lines below the question and the answer is the letter with the
choice's text, `B) ...`, as in the paper's released code: it begins with what is graded. The hint
comes first, as VLMEvalKit puts it when it asks the same set; the released code leaves it out, and
with it what many questions refer to. Rows without an image are kept (released: left out).
In ChartQA and TextVQA a null image is one that got lost, and its row is left out. Answers count as
distinct by their text without the blanks around it, which is what is kept of them, in the order of
their first appearance.
"""

from dataclasses import dataclass
from string import ascii_uppercase
from typing import Any

import pyarrow as pa

from interlace.sampling.values import RejectedRow, check_text, fields, length, value

COLUMNS = {
    "chartqa": ("image", "query", "label"),
    "textvqa": ("image", "question", "answers"),
    "scienceqa": ("image", "question", "choices", "answer"),
}
"""Format -> the columns a record is made from."""

MOST_ANSWERS = 1000
"""Answers to one question; TextVQA has ten."""

IMAGES = pa.list_(pa.struct([("bytes", pa.binary()), ("path", pa.string())]))
TEXTS = pa.list_(pa.struct([("user", pa.string()), ("assistant", pa.string())]))


@dataclass(frozen=True)
class Question:
    """One row of a domain set: its images (one or none), what is asked and the distinct answers."""

    images: list[dict[str, Any] | None]
    user: str
    answers: list[str]


def read_question(values: pa.Table, format: str) -> Question:
    """Return the question in a one-row table. Raises `RejectedRow` where there is none to ask."""
    image = fields(values["image"][0], ("bytes", "path"))
    images = [] if image is None else [image]
    if format == "scienceqa":
        return Question(images, *_multiple_choice(values))
    if not images:  # what is asked is about it
        raise RejectedRow("missing_image", "image is null")
    asked, answered = COLUMNS[format][1:]
    if length(values, answered) > MOST_ANSWERS:
        raise RejectedRow("unusable_text", f"{length(values, answered)} answers")
    answers = value(values, answered)
    answers = answers if isinstance(answers, list) else [answers]
    distinct = list(dict.fromkeys(a.strip() for a in answers if isinstance(a, str) and a.strip()))
    if not distinct:
        raise RejectedRow("unusable_text", f"{answered} holds no answer")
    user = check_text(value(values, asked), asked)
    return Question(images, user, [check_text(answer, answered) for answer in distinct])


def _multiple_choice(values: pa.Table) -> tuple[str, list[str]]:
    if length(values, "choices") > len(ascii_uppercase):
        number = length(values, "choices")
        raise RejectedRow("unusable_text", f"{number} choices; letters end at 26")
    choices, right = value(values, "choices") or [], value(values, "answer")
    if not isinstance(right, int) or not 0 <= right < len(choices):
        raise RejectedRow("unusable_text", f"answer {right} is none of {len(choices)} choices")
    lines = [
        f"{letter}) {check_text(choice, f'choice {letter}')}"
        for letter, choice in zip(ascii_uppercase, choices, strict=False)
    ]
    user = "\n".join([check_text(value(values, "question"), "question"), *lines])
    hint = value(values, "hint")
    if isinstance(hint, str) and hint.strip():
        user = f"Hint: {check_text(hint, 'hint')}\n{user}"
    return user, [lines[right]]


def to_rows(values: pa.Table, question: Question) -> list[pa.Table]:
    """Return a one-row table per distinct answer, in the columns of `records_schema`."""
    schema = records_schema(values.schema)
    rest = [values[name].combine_chunks() for name in schema.names[2:]]
    images = pa.array([question.images], IMAGES)
    return [
        pa.table(
            [images, pa.array([[{"user": question.user, "assistant": answer}]], TEXTS), *rest],
            schema=schema,
        )
        for answer in question.answers
    ]


def records_schema(schema: pa.Schema) -> pa.Schema:
    """Return the columns that are written: images, texts and the set's own but `image` and ids."""
    fields = [f for f in schema if f.name not in ("image", "images", "texts", "id")]
    return pa.schema([("images", IMAGES), ("texts", TEXTS), *fields])
