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
