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

_NUMBERS = ("rows", "target", "drawn", "kept", "short", "calibration", "images")
"""Counts of samples.json in the order of the columns; those that a file lacks are left out."""


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
        *([f"Rule: {body['rule']}."] if body.get("rule") else []),
    ]
    write_formats(
        stem,
        {
            ".csv": _csv(head, rows, reasons),
            ".md": _markdown(title, head, rows, remarks, reasons),
            ".html": html_page(title, reasons, _html(head, rows), remarks),
        },
    )


def _rows(body: dict[str, Any]) -> tuple[list[str], list[list[str]]]:
    """Return headings and rows, a column per reason that rejected anything, the total last."""
    total = body["total"]
    numbers = [name for name in _NUMBERS if name in total]
    rejected = [reason for reason, count in total.get("rejected", {}).items() if count]
    head = ["subset", *numbers, *(f"rejected: {reason}" for reason in rejected)]
    rows = [
        [name]
        + [str(counts.get(number, 0)) for number in numbers]
        + [str(counts.get("rejected", {}).get(reason, 0)) for reason in rejected]
        for name, counts in [*body["subsets"].items(), ("all subsets", total)]
    ]
    return head, rows


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
