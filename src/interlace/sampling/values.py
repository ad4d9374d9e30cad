"""Single values out of a one-row table whose bytes nobody vouches for."""

from typing import Any

import pyarrow as pa


class RejectedRow(Exception):
    """A row that is left out; `reason` is the name it is counted under, `detail` says more."""

    def __init__(self, reason: str, detail: str) -> None:
        super().__init__(f"{reason}: {detail}")
        self.reason = reason
        self.detail = detail


def check_row(values: pa.Table) -> None:
    """Raise `RejectedRow` where a column of a one-row table breaks its own type.

    That is above all text that is not UTF-8, lone surrogates included: later readers (pandas,
    `datasets`, JSON) would fail on the whole file because of one such string.
    """
    for name in values.column_names:
        try:
            values[name].validate(full=True)
        except pa.ArrowInvalid as error:
            reason = "undecodable_image" if name in ("image", "images") else "unusable_text"
            raise RejectedRow(reason, f"column {name}: {str(error).splitlines()[0]}") from error


def value(values: pa.Table, column: str) -> Any:
    """Return the only value of a column as Python's own type; None if there is no such column."""
    return values[column][0].as_py() if column in values.column_names else None


def fields(item: pa.Scalar, names: tuple[str, ...]) -> dict[str, Any] | None:
    """Return what a struct has under `names`, None under those it lacks; None where it is null.

    Its other fields are left alone: Arrow holds dates, time zones that Python does not.
    """
    if not item.is_valid:
        return None
    held = {field.name for field in item.type}
    return {name: item[name].as_py() if name in held else None for name in names}


def as_text(item: pa.Scalar) -> str | None:
    """Return a scalar of any type as text, None where it is null.

    Times are given as Arrow spells them, or by the number they are stored as: Python has no name
    for the year 100,000, and none of a time zone that it does not know.
    """
    if not item.is_valid:
        return None
    if not pa.types.is_temporal(item.type):
        return str(item.as_py())
    try:
        text = item.cast(pa.string()).as_py()
    except pa.ArrowException:
        text = "<"
    return str(item.value) if text.startswith("<") else text


def length(values: pa.Table, column: str) -> int:
    """Return how many items the only value of a list column has; 0 where it is null or no list.

    None of them is made an object of: a few bytes of Parquet can hold a list of millions.
    """
    if column not in values.column_names or not values[column][0].is_valid:
        return 0
    items = values[column][0]
    return len(items) if isinstance(items, pa.ListScalar | pa.LargeListScalar) else 0


def check_text(text: Any, name: str) -> str:
    """Return `text`; raise `RejectedRow` unless it is a string with something to read in it."""
    if not isinstance(text, str) or not text.strip():
        raise RejectedRow("unusable_text", f"{name} is empty")
    if "\0" in text:
        # A NUL ends a string for whatever is written in C; text that holds one was misread before.
        raise RejectedRow("unusable_text", f"{name} holds a NUL character")
    return text
