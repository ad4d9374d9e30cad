"""The samples of a run, counted: a row per subset with what was drawn, kept and left out."""

import csv
import html
import io
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from interlace.errors import InputError
from interlace.io import read_json
from interlace.reporting import standin
from interlace.reporting.render import html_page, write_formats

_NUMBERS = (
    "rows", "target", "drawn", "kept", "records", "short", "cut", "calibration",
    "calibration_wanted", "images", "row_groups", "refused_shards", "refused_rows", "bytes_fetched",
    "bytes_kept",
)  # fmt: skip
"""Counts of samples.json in the order of the columns; those that a file lacks are left out."""

_BYTES = ("bytes_fetched", "bytes_kept")
_ONLY_IF_ANY = ("cut", "refused_shards", "refused_rows")
# Shown only where some subset has another number than the column of the second name.
_ONLY_IF_ANOTHER = {"records": "kept", "calibration_wanted": "calibration"}
_MOST_NAMED = 5  # subsets in a remark
_UNITS = ("B", "kB", "MB", "GB", "TB")


def write_samples_table(samples: Path, stem: Path, reasons: Sequence[str]) -> None:
    """Write the counts of a samples.json as `stem`.csv, .md and .html.

    InputError if the file has no `subsets` or `total`.
    """
    body = read_json(samples)
    if not isinstance(body, dict) or not body.get("subsets") or "total" not in body:
        raise InputError(f"{samples}: no counts per subset; delete it and draw the samples again")
    head, rows = _rows(body)
    title = "Samples per subset"
    remarks = [
        *([f"The samples are a {standin.WORD}: {', '.join(reasons)}."] if reasons else []),
        "rows: in the source; target: to be kept; drawn: kept and rejected; short: target not met.",
        *_remarks_on_counts(body),
        *_remarks_on_content(body),
        *_remarks_on_source(body),
        *([f"Rule: {body['rule']}."] if body.get("rule") else []),
    ]
    csv_head, csv_rows = _rows(body, plain=True)
    write_formats(
        stem,
        {
            ".csv": _csv(csv_head, csv_rows, reasons),
            ".md": _markdown(title, head, rows, remarks, reasons),
            ".html": html_page(title, reasons, _html(head, rows), remarks),
        },
    )


def _rows(body: dict[str, Any], plain: bool = False) -> tuple[list[str], list[list[str]]]:
    """Return headings and rows, a column per reason that rejected anything, the total last.

    `plain`: bytes as they are, under the names of samples.json; else in kB, MB, ...
    """
    total = body["total"]
    numbers = [name for name in _NUMBERS if _says_something(name, body)]
    rejected = [reason for reason, count in total.get("rejected", {}).items() if count]
    titles = [name if plain else name.replace("_", " ") for name in numbers]
    head = ["subset", *titles, *(f"rejected: {reason}" for reason in rejected)]
    rows = [
        [name]
        + [_number(counts.get(number, 0), number, plain) for number in numbers]
        + [str(counts.get("rejected", {}).get(reason, 0)) for reason in rejected]
        for name, counts in [*body["subsets"].items(), ("all subsets", total)]
    ]
    return head, rows


def _says_something(name: str, body: dict[str, Any]) -> bool:
    total = body["total"]
    if name in _ONLY_IF_ANOTHER:
        other = _ONLY_IF_ANOTHER[name]
        return any(n.get(name, n.get(other)) != n.get(other) for n in body["subsets"].values())
    return name in total and (name not in _ONLY_IF_ANY or total[name] > 0)


def _number(value: int, name: str, plain: bool) -> str:
    return str(value) if plain or name not in _BYTES else _size(value)


def _size(value: float) -> str:
    """Return a number of bytes in the largest decimal unit that leaves at least 1 of it."""
    for unit in _UNITS:
        if value < 999.5 or unit == _UNITS[-1]:
            break
        value /= 1000
    return f"{value:.0f} {unit}" if value >= 99.5 or unit == "B" else f"{value:.3g} {unit}"


def _remarks_on_counts(body: dict[str, Any]) -> list[str]:
    """Return which subsets fell short, and how large the calibration split was to be and is."""
    remarks = []
    short = [
        f"{name} ({n['kept']} of {n['target']})"
        for name, n in body["subsets"].items()
        if n.get("short")
    ]
    if short:
        noun = "subset has" if len(short) == 1 else "subsets have"
        remarks.append(f"short: {len(short)} {noun} no row left to draw: {_named(short)}.")
    got, wanted = (body["total"].get(key) for key in ("calibration", "calibration_wanted"))
    if wanted is not None:
        share = body.get("settings", {}).get("calibration_fraction")
        of = f", {100 * share:g} % of what is kept" if share is not None else ""
        missed = (
            "" if got == wanted else "; the samples of one source row are never on both sides of it"
        )
        remarks.append(f"calibration: {got} samples; wanted: {wanted}{of}{missed}.")
    return remarks


def _remarks_on_content(body: dict[str, Any]) -> list[str]:
    """Return what of the source is not in the samples, and what cannot be loaded with the rest."""
    dropped: dict[str, list[str]] = {}
    for name, counts in body["subsets"].items():
        for field in counts.get("dropped_fields", ()):
            dropped.setdefault(field, []).append(name)
    remarks = [
        f"not written: `{field}` of {_named(names)}, which has no place in the samples' columns."
        for field, names in dropped.items()
    ]
    remarks += [
        f"{name} cannot be loaded as one table with the other subsets: {why}."
        for name, why in body.get("apart", {}).items()
    ]
    if passed := body.get("passed_over"):
        files = "1 Parquet file" if len(passed) == 1 else f"{len(passed)} Parquet files"
        remarks.append(
            f"passed over: {files} of other splits or beside the subsets, first {passed[0]}."
        )
    return remarks


def _named(names: list[str]) -> str:
    """Return the first few names, and how many more there are."""
    more = len(names) - _MOST_NAMED
    return ", ".join(names[:_MOST_NAMED]) + (f" and {more} more" if more > 0 else "")


def _remarks_on_source(body: dict[str, Any]) -> list[str]:
    """Return what is to be said of the bytes that were read and of where they came from."""
    remarks = []
    total = body["total"]
    fetched, kept = total.get("bytes_fetched"), total.get("bytes_kept")
    if fetched and kept:
        footers = total.get("footer_bytes", 0)
        remarks.append(
            f"bytes fetched: of row groups; with {_size(footers)} of footers, from which the draw was "
            f"planned, {(fetched + footers) / kept:.2f} times what the samples take on disk."
        )
    if total.get("refused_shards"):
        remarks.append(
            f"refused shards: {total['refused_shards']} that no row can be read from; samples.json "
            "names them and says why."
        )
    if total.get("refused_rows"):
        remarks.append(
            f"refused rows: {total['refused_rows']} that those shards announce; not among rows."
        )
    where = body.get("address") or body.get("source")
    if where:
        revision = body.get("revision")
        said = f", commit {revision}" if revision and revision not in where else ""
        remarks.append(f"Source: {where}{said}.")
    return remarks


def _csv(head: list[str], rows: list[list[str]], reasons: Sequence[str]) -> str:
    stream = io.StringIO()
    writer = csv.writer(stream, lineterminator="\n")
    writer.writerow([*head, "note"])
    writer.writerows([*row, standin.remark(reasons)] for row in rows)
    return stream.getvalue()


def _markdown(
    title: str,
    head: list[str],
    rows: list[list[str]],
    remarks: list[str],
    reasons: Sequence[str],
) -> str:
    lines = [f"# {title}{standin.title_mark(reasons)}", "", "| " + " | ".join(head) + " |"]
    lines.append("| --- |" + " ---: |" * (len(head) - 1))
    lines += ["| " + " | ".join(cell.replace("|", "\\|") for cell in row) + " |" for row in rows]
    return "\n".join([*lines, "", *(f"- {remark}" for remark in remarks), ""])


def _html(head: list[str], rows: list[list[str]]) -> str:
    def line(texts: list[str], tag: str, style: str = "") -> str:
        cells = "".join(
            f"<{tag}{' class=text' if i == 0 else ''}>{html.escape(text)}</{tag}>"
            for i, text in enumerate(texts)
        )
        return f"<tr{style}>{cells}</tr>\n"

    body = "".join(line(row, "td") for row in rows[:-1])
    last = line(rows[-1], "td", ' class="first average"')
    return f"<table>\n<thead>{line(head, 'th')}</thead>\n<tbody>\n{body}{last}</tbody>\n</table>\n"
