"""What one row is: a sample to keep, maybe changed, or one to leave out, and under which name.

Rows come from data sets that nobody vouches for. A row is decoded in full here, so that whatever
is wrong with it shows now and not days later in training; nothing in it is ever executed (no
pickle; images through decoders of raster formats only, see `interlace.data.images`).

What a user or an assistant writes is kept as it stands, `<image>` or `<|im_start|>` included:
images are columns of their own, and the chat template gets the text as content to be encoded as
plain text (`interlace.data.collate`), never as a control token. Only the export to Qwen's JSON, in
which `<image>` is markup, has to escape it.
"""

import json
from dataclasses import dataclass
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from interlace.data.images import ImageDecodeError, decode_image
from interlace.sampling import domain
from interlace.sampling.values import RejectedRow, check_row, check_text

REASONS = (
    "too_many_images",
    "too_many_turns",
    "unusable_text",
    "missing_image",
    "undecodable_image",
    "too_many_pixels",
    "extreme_aspect_ratio",
    "unreadable_row_group",  # given by the fetch, never by `examine`
)
"""Why a row is left out."""

MAX_ASPECT_RATIO = 200
"""Longer to shorter side; Qwen's image processor refuses what lies above (`smart_resize`)."""

FORMATS = ("finevision", *domain.COLUMNS)
_FINEVISION = {"images": ("bytes",), "texts": ("user", "assistant")}


@dataclass(frozen=True)
class Verdict:
    """What came of one row.

    `entry`: the manifest's fields that follow from the content (status, reason, detail, num_images,
    num_turns, num_chars, image_sizes). `rows`: one-row tables to write, in the columns of
    `kept_schema`; none if rejected, several for a domain set. `suffixes`: what each adds to the id.
    `num_chars`: the characters of each; those of the entry are of the first.
    """

    entry: dict[str, Any]
    rows: list[pa.Table]
    suffixes: list[str]
    num_chars: list[int]


def examine(values: pa.Table, settings: dict[str, Any]) -> Verdict:
    """Judge a one-row table by the `data` section of the configuration.

    `max_images`, `max_turns`: rows above are left out. With `long_conversations: cut`, a long
    conversation is cut as the paper's released code does, which counts messages, not turns, and
    stops after the first answer at or past message number `max_turns`: 5 messages end in the
    third turn, so three turns are kept. `format`: what the columns mean.
    """
    entry: dict[str, Any] = {
        "status": "rejected",
        "reason": None,
        "detail": None,
        "num_images": None,
        "num_turns": None,
        "num_chars": None,
        "image_sizes": None,
    }
    try:
        # A copy, so that neither the check nor a kept row drags its whole row group along.
        values = values.take([0])
        if settings.get("format", "finevision") == "finevision":
            return _examine_conversation(values, settings, entry)
        return _examine_question(values, settings, entry)
    except RejectedRow as rejected:
        return _rejected(entry, rejected.reason, rejected.detail)


def _rejected(entry: dict[str, Any], reason: str, detail: str) -> Verdict:
    assert reason in REASONS
    return Verdict(entry | {"reason": reason, "detail": detail}, [], [], [])


def _examine_conversation(
    values: pa.Table, settings: dict[str, Any], entry: dict[str, Any]
) -> Verdict:
    # Counts first: they are in the manifest whatever else is wrong, and cost nothing.
    images = _items(values, "images")
    entry["num_images"] = len(images)
    turns = _items(values, "texts")
    entry["num_turns"] = len(turns)
    _check_count(images, settings)
    detail = None
    most = settings["max_turns"]
    if settings.get("long_conversations", "reject") == "cut":
        whole, kept = len(turns), (most + 1) // 2
        if whole > kept:
            turns = turns[:kept]
            values = _cut(values, whole, kept)
            entry["num_turns"] = kept
            detail = f"cut from {whole} to {kept} turns"
    elif len(turns) > most:
        raise RejectedRow("too_many_turns", f"{len(turns)} turns")
    check_row(values)
    texts = [
        check_text((turn.as_py() or {}).get(key), f"turn {number}: {key}")
        for number, turn in enumerate(turns)
        for key in ("user", "assistant")
    ]
    if not texts:
        raise RejectedRow("unusable_text", "no turn")
    num_chars = sum(map(len, texts))
    sizes = _image_sizes([image.as_py() for image in images])
    if "id" in values.column_names:
        values = values.drop_columns("id")
    entry |= {"status": "kept", "detail": detail, "num_chars": num_chars, "image_sizes": sizes}
    return Verdict(entry, [values], [""], [num_chars])


def _examine_question(values: pa.Table, settings: dict[str, Any], entry: dict[str, Any]) -> Verdict:
    check_row(values)
    question = domain.read_question(values, settings["format"])
    entry |= {"num_images": len(question.images), "num_turns": 1}
    _check_count(question.images, settings)
    num_chars = [len(question.user) + len(answer) for answer in question.answers]
    sizes = _image_sizes(question.images)
    entry |= {"status": "kept", "num_chars": num_chars[0], "image_sizes": sizes}
    rows = domain.to_rows(values, question)
    return Verdict(entry, rows, [f"/a{n}" for n in range(len(rows))], num_chars)


def kept_schema(schema: pa.Schema, settings: dict[str, Any]) -> pa.Schema:
    """Return the columns of what is written of rows with `schema`; `id` comes on top.

    They are the original ones, only that images which are null throughout get the type they have
    elsewhere, so that files of several subsets can be read as one. In place of the source's metadata
    stands what tells `datasets` that they are images, for it to decode them.
    """
    if settings.get("format", "finevision") != "finevision":
        schema = domain.records_schema(schema)
    fields = [
        field.with_type(domain.IMAGES)
        if field.name == "images" and pa.types.is_null(field.type)
        else field
        for field in schema
        if field.name != "id"
    ]
    described = json.dumps({"info": {"features": {"images": [{"_type": "Image"}]}}})
    return pa.schema(fields, metadata={"huggingface": described})


def schema_complaint(schema: pa.Schema, settings: dict[str, Any]) -> str | None:
    """Return why rows with `schema` cannot be read in the format that is set; None if they can."""
    format = settings.get("format", "finevision")
    needed = _FINEVISION if format == "finevision" else dict.fromkeys(domain.COLUMNS[format], ())
    twice = [name for name in schema.names if schema.names.count(name) > 1]
    if twice:
        return f"column `{twice[0]}` is there {schema.names.count(twice[0])} times; name it once"
    for column, keys in needed.items():
        if column not in schema.names:
            return (
                f"no column `{column}` (it has {', '.join(schema.names)}); "
                f"data.format {format} needs {', '.join(needed)}"
            )
        kind = schema.field(column).type
        if keys and not _is_list_of(kind, keys):
            return f"column `{column}` is {kind}; it must be a list of structs with {' and '.join(keys)}"
        if column == "image" and not (pa.types.is_null(kind) or _has_keys(kind, ("bytes",))):
            return f"column `image` is {kind}; it must be a struct with bytes"
    return None


def _is_list_of(kind: pa.DataType, keys: tuple[str, ...]) -> bool:
    if pa.types.is_null(kind):  # a column that is null throughout has no items
        return True
    is_list = pa.types.is_list(kind) or pa.types.is_large_list(kind)
    return is_list and (pa.types.is_null(kind.value_type) or _has_keys(kind.value_type, keys))


def _has_keys(kind: pa.DataType, keys: tuple[str, ...]) -> bool:
    return pa.types.is_struct(kind) and all(kind.get_field_index(key) >= 0 for key in keys)


def _items(values: pa.Table, column: str) -> list[pa.Scalar]:
    """Return the items of a list column, still undecoded; none where it is null or absent."""
    if column not in values.column_names or not values[column][0].is_valid:
        return []
    items = values[column][0]
    return list(items) if isinstance(items, pa.ListScalar | pa.LargeListScalar) else []


def _check_count(images: list[Any], settings: dict[str, Any]) -> None:
    if len(images) > settings["max_images"]:
        raise RejectedRow("too_many_images", f"{len(images)} images")


def _image_sizes(images: list[dict[str, Any] | None]) -> list[list[int]]:
    """Decode every image; return their widths and heights in pixels."""
    sizes = []
    for number, image in enumerate(images):
        try:
            width, height = decode_image((image or {}).get("bytes")).size
        except ImageDecodeError as error:
            raise RejectedRow(error.reason, f"image {number}: {error}") from error
        if max(width, height) > MAX_ASPECT_RATIO * min(width, height):
            raise RejectedRow("extreme_aspect_ratio", f"image {number}: {width} x {height} pixels")
        sizes.append([width, height])
    return sizes


def _cut(values: pa.Table, whole: int, kept: int) -> pa.Table:
    """Return a row with its first `kept` turns; lists of a rating per turn are cut with them.

    The minima over the ratings stay those of the whole conversation.
    """
    for position, field in enumerate(values.schema):
        per_turn = field.name == "texts" or field.name.endswith("_ratings")
        if per_turn and len(_items(values, field.name)) == whole:
            cut = pc.list_slice(values[field.name], 0, kept).cast(field.type)
            values = values.set_column(position, field, cut)
    return values
