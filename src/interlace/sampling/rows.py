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
from dataclasses import dataclass, replace
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from interlace.data.images import ImageDecodeError, decode_image
from interlace.sampling import domain
from interlace.sampling.schemas import plain
from interlace.sampling.values import (
    RejectedRow,
    as_text,
    check_row,
    check_text,
    fields,
    length,
)
from interlace.secrets import one_line

REASONS = (
    "too_many_images",
    "too_many_turns",
    "unusable_text",
    "missing_image",
    "undecodable_image",
    "too_many_pixels",
    "extreme_aspect_ratio",
    "unreadable_row",
    "unreadable_row_group",  # given by the fetch, never by `examine`
)
"""Why a row is left out."""

MAX_ASPECT_RATIO = 200
"""Longer to shorter side; Qwen's image processor refuses what lies above (`smart_resize`)."""

_FINEVISION = {"images": ("bytes",), "texts": ("user", "assistant")}
_OURS = {"images": domain.IMAGES, "texts": domain.TEXTS}


@dataclass(frozen=True)
class Verdict:
    """What came of one row.

    `entry`: the manifest's fields that follow from the content (status, reason, detail, num_images,
    num_turns, num_chars, image_sizes, image_bytes). `rows`: one-row tables to write, in the columns of
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
        "image_bytes": None,
    }
    try:
        # A copy, so that neither the check nor a kept row drags its whole row group along.
        values = values.take([0])
        if settings["format"] == "finevision":
            verdict = _examine_conversation(values, settings, entry)
        else:
            verdict = _examine_question(values, settings, entry)
        return replace(verdict, rows=[_with_source_id(row, values) for row in verdict.rows])
    except RejectedRow as rejected:
        return _rejected(entry, rejected.reason, rejected.detail)
    except (AssertionError, MemoryError):  # our own fault, and the machine's
        raise
    except Exception as error:
        # Types are the source's choice, and each has values that Arrow or Python cannot hold.
        return _rejected(entry, "unreadable_row", one_line(error))


def _rejected(entry: dict[str, Any], reason: str, detail: str) -> Verdict:
    assert reason in REASONS
    entry |= {"status": "rejected", "reason": reason, "detail": detail}
    return Verdict(entry, [], [], [])


def _examine_conversation(
    values: pa.Table, settings: dict[str, Any], entry: dict[str, Any]
) -> Verdict:
    # Counts first: they are in the manifest whatever else is wrong, and cost nothing.
    entry["num_images"] = length(values, "images")
    entry["num_turns"] = turns = length(values, "texts")
    _check_count(entry["num_images"], settings)
    detail = None
    most = settings["max_turns"]
    if settings["long_conversations"] == "cut":
        kept = (most + 1) // 2
        if turns > kept:
            values = _cut(values, turns, kept)
            entry["num_turns"] = kept
            detail = f"cut from {turns} to {kept} turns"
    elif turns > most:
        raise RejectedRow("too_many_turns", f"{turns} turns")
    check_row(values)
    pictures = _items(values, "images")
    texts = [
        check_text((turn or {}).get(key), f"turn {number}: {key}")
        for number, turn in enumerate(_items(values, "texts"))
        for key in ("user", "assistant")
    ]
    if not texts:
        raise RejectedRow("unusable_text", "no turn")
    num_chars = sum(map(len, texts))
    entry |= {"image_sizes": _image_sizes(pictures), "image_bytes": _image_bytes(pictures)}
    values = _in_our_types(values)
    entry |= {"status": "kept", "detail": detail, "num_chars": num_chars}
    return Verdict(entry, [values], [""], [num_chars])


def _examine_question(values: pa.Table, settings: dict[str, Any], entry: dict[str, Any]) -> Verdict:
    check_row(values)
    question = domain.read_question(values, settings["format"])
    entry |= {"num_images": len(question.images), "num_turns": 1}
    _check_count(len(question.images), settings)
    num_chars = [len(question.user) + len(answer) for answer in question.answers]
    entry |= {
        "image_sizes": _image_sizes(question.images),
        "image_bytes": _image_bytes(question.images),
    }
    entry |= {"status": "kept", "num_chars": num_chars[0]}
    rows = domain.to_rows(values, question)
    return Verdict(entry, rows, [f"/a{n}" for n in range(len(rows))], num_chars)


def kept_schema(schema: pa.Schema, settings: dict[str, Any]) -> pa.Schema:
    """Return the columns of what is written of rows with `schema`; `id` comes on top.

    They are the original ones, only that images and texts are of one type everywhere, so that files
    of several subsets can be read as one (`dropped_fields`), and that the source's own `id` is the
    text `source_id`, null where it has none. In place of the source's metadata stands what tells
    `datasets` that they are images, for it to decode them.
    """
    if settings["format"] != "finevision":
        schema = domain.records_schema(schema)
    columns = [
        field.with_type(_OURS.get(field.name, field.type))
        for field in plain(schema)
        if field.name != "id"
    ]
    if "source_id" not in schema.names:
        columns.append(pa.field("source_id", pa.string()))
    described = json.dumps({"info": {"features": {"images": [{"_type": "Image"}]}}})
    return pa.schema(columns, metadata={"huggingface": described})


def dropped_fields(schema: pa.Schema, settings: dict[str, Any]) -> list[str]:
    """Return what of rows with `schema` is not written: fields of structs beside ours, columns in our place."""
    if settings["format"] != "finevision":
        structs, whole = {"image": domain.IMAGES}, [c for c in schema.names if c in _OURS]
    else:
        structs, whole = _OURS, []
    extra = []
    for column, ours in structs.items():
        kind = schema.field(column).type if column in schema.names else pa.null()
        kind = kind if pa.types.is_struct(kind) or pa.types.is_null(kind) else kind.value_type
        known = [field.name for field in ours.value_type]
        names = [field.name for field in kind] if pa.types.is_struct(kind) else []
        extra += [f"{column}.{name}" for name in names if name not in known]
    twice = ["id"] if {"id", "source_id"} <= set(schema.names) else []
    return whole + extra + twice


def schema_complaint(schema: pa.Schema, settings: dict[str, Any]) -> str | None:
    """Return why rows with `schema` cannot be read in the format that is set; None if they can."""
    format = settings["format"]
    needed = _FINEVISION if format == "finevision" else dict.fromkeys(domain.COLUMNS[format], ())
    twice = [name for name in schema.names if schema.names.count(name) > 1]
    if twice:
        return f"column `{twice[0]}` is there {schema.names.count(twice[0])} times; name it once"
    schema = plain(schema)
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


def _items(values: pa.Table, column: str) -> list[dict[str, Any] | None]:
    """Return the fields we know of the items of a list column; none where it is null or absent.

    Each is an object of Python: whoever asks knows that there are few.
    """
    if not length(values, column):
        return []
    names = tuple(field.name for field in _OURS[column].value_type)
    return [fields(item, names) for item in values[column][0]]


def _check_count(images: int, settings: dict[str, Any]) -> None:
    if images > settings["max_images"]:
        raise RejectedRow("too_many_images", f"{images} images")


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


def _image_bytes(images: list[dict[str, Any]]) -> list[int]:
    return [len(image["bytes"]) for image in images]


def _with_source_id(row: pa.Table, values: pa.Table) -> pa.Table:
    """Return a row whose column `id`, as `values` have it, makes room for ours."""
    if "id" in row.column_names:
        row = row.drop_columns("id")
    if "source_id" in row.column_names:
        return row
    own = as_text(values["id"][0]) if "id" in values.column_names else None
    return row.append_column("source_id", pa.array([own], pa.string()))


def _in_our_types(values: pa.Table) -> pa.Table:
    """Return a row whose images and texts have the fields of `_OURS`, in their order, and no more."""
    for column, kind in _OURS.items():
        if column in values.column_names:
            items = _items(values, column) if values[column][0].is_valid else None
            place = values.column_names.index(column)
            values = values.set_column(place, column, pa.array([items], kind))
    return values


def _cut(values: pa.Table, whole: int, kept: int) -> pa.Table:
    """Return a row with its first `kept` turns; lists of a rating per turn are cut with them.

    The minima over the ratings stay those of the whole conversation.
    """
    for position, field in enumerate(values.schema):
        per_turn = field.name == "texts" or field.name.endswith("_ratings")
        if per_turn and length(values, field.name) == whole:
            cut = pc.list_slice(values[field.name], 0, kept).cast(field.type)
            values = values.set_column(position, field, cut)
    return values
