"""Tables written down: CSV (long, for machines), Markdown, LaTeX (booktabs) and HTML."""

import csv
import html
import io
import re
from collections.abc import Sequence
from pathlib import Path

from interlace.io import write_text
from interlace.reporting import standin
from interlace.reporting.cells import MISSING as MISSING
from interlace.reporting.cells import PARTIAL as PARTIAL
from interlace.reporting.cells import bracket, group_label, heading, notes, number, ours, signed
from interlace.reporting.latex import to_latex
from interlace.reporting.layout import Cell, Column, Row, Table

CSV_COLUMNS = (
    "table",
    "row_group",
    "row",
    "column_group",
    "column",
    "ours",
    "ours_low",
    "ours_high",
    "seeds",
    "spread",
    "seeds_low",
    "seeds_high",
    "paper",
    "difference",
    "note",
)


def write_table(table: Table, stem: Path) -> list[Path]:
    """Write `stem`.csv, .md, .tex and .html; return their paths."""
    return write_formats(
        stem,
        {".csv": to_csv(table), ".md": to_markdown(table), ".tex": to_latex(table)}
        | {".html": to_html(table)},
    )


def write_formats(stem: Path, texts: dict[str, str]) -> list[Path]:
    """Write each text to `stem` with its suffix appended (a stem may hold dots)."""
    paths = []
    for suffix, text in texts.items():
        path = stem.with_name(stem.name + suffix)
        write_text(path, text)
        paths.append(path)
    return paths


# -- CSV ------------------------------------------------------------------------------------------


def to_csv(table: Table) -> str:
    """Return one line per cell; `note` says what has to be known about our number.

    Texts that describe a row (sparsity, fine-tuned) are columns of their own.
    """
    stream = io.StringIO()
    writer = csv.writer(stream, lineterminator="\n")
    names = [name.lower().replace("-", "_") for name in table.attributes]
    writer.writerow([*CSV_COLUMNS[:3], *names, *CSV_COLUMNS[3:]])
    for row in table.rows:
        for column in table.columns:
            cell = table.cell(row, column)
            seeds = cell.spread
            values = (
                *(cell.ours, cell.low, cell.high),
                *((seeds.count, seeds.deviation, seeds.low, seeds.high) if seeds else [None] * 4),
                *(cell.paper, cell.difference),
            )
            places = (table.number, row.group, row.label, *row.attributes)
            writer.writerow(
                [*places, column.group, column.label]
                + ["" if value is None else f"{value:.6g}" for value in values]
                + [_csv_note(table, cell)]
            )
    return stream.getvalue()


def _csv_note(table: Table, cell: Cell) -> str:
    parts = []
    if cell.ours is None:
        return "no result"
    if table.standin:
        parts.append(standin.remark(table.standin))
    if cell.partial:
        parts.append("part of a benchmark")
    if cell.coverage:
        parts.append(f"{cell.coverage[0]} of {cell.coverage[1]} benchmarks")
    if cell.defined is not None:
        parts.append(f"no interval: defined in {100 * cell.defined:.1f} % of the resamples")
    return "; ".join(parts)


# -- Markdown -------------------------------------------------------------------------------------


def to_markdown(table: Table) -> str:
    """Return a Markdown table; a cell is `ours / paper / difference` where the paper has one."""
    grouped = any(row.group for row in table.rows)
    head = [*(["Category"] if grouped else []), table.corner, *table.attributes]
    compared = any(table.has_paper(column) for column in table.columns)
    for column in table.columns:
        name = f"{column.group}: {column.label}" if column.group else column.label
        head.append(name)
    lines = [f"# {heading(table)}", ""]
    if compared:
        lines += ["Each cell: ours / the paper's / difference.", ""]
    num_texts = len(head) - len(table.columns)
    rule = ["---"] * num_texts + ["---:"] * len(table.columns)
    body = [
        [
            *(group_label(table, i) if grouped else []),
            row.label,
            *row.attributes,
            *(_markdown_cell(table, row, column) for column in table.columns),
        ]
        for i, row in enumerate(table.rows)
    ]
    lines += [_markdown_row(cells) for cells in (head, rule, *body)]
    lines += ["", *(f"- {note}" for note in notes(table)), ""]
    return "\n".join(lines)


def _markdown_row(cells: Sequence[str]) -> str:
    return "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |"


def _markdown_cell(table: Table, row: Row, column: Column) -> str:
    cell = table.cell(row, column)
    text = ours(cell, column.digits)
    if table.intervals and (interval := bracket(cell, column.digits)):
        text += f" {interval}"
    if not table.has_paper(column):
        return text
    return (
        f"{text} / {number(cell.paper, column.digits)} / {signed(cell.difference, column.digits)}"
    )


# -- HTML -----------------------------------------------------------------------------------------

_STYLE = """
body { font: 15px/1.45 system-ui, "Helvetica Neue", Arial, sans-serif; color: #1b1f24;
       background: #fff; margin: 1.5rem; }
h1 { font-size: 1.15rem; margin: 0 0 .8rem; }
h2 { font-size: 1rem; margin: 1.4rem 0 .5rem; }
.scroll { overflow-x: auto; }
table { border-collapse: collapse; font-size: .84rem; font-variant-numeric: tabular-nums;
        border-top: 2px solid #1b1f24; border-bottom: 2px solid #1b1f24; }
th, td { padding: .22rem .5rem; text-align: right; white-space: nowrap; }
th.text, td.text { text-align: left; }
thead th { font-weight: 600; }
thead tr:last-child th { border-bottom: 1px solid #1b1f24; }
thead th.span { text-align: center; border-bottom: 1px solid #c4cad1; }
tbody tr.first td { border-top: 1px solid #c4cad1; }
tbody tr { background: #fff; }
tbody tr.average { background: #f5f7f9; }
td.label { position: sticky; left: 0; background: inherit; }
td.group, td.paper, td.difference, thead th.sub { color: #59636e; font-weight: 400; }
td.start, th.start { padding-left: 1rem; }
td { vertical-align: top; }
.interval { display: block; font-size: .72rem; line-height: 1.1; color: #59636e; }
.standin { display: inline-block; background: #fdf0d5; border: 1px solid #d9a441;
           border-radius: 3px; padding: .05rem .45rem; font-weight: 600; }
ul { font-size: .84rem; color: #424a53; padding-left: 1.1rem; }
"""


# Control characters, and those that turn the direction of what follows.
_UNPRINTED = re.compile(r"[\x00-\x1f\x7f-\x9f\u200e\u200f\u202a-\u202e\u2066-\u2069]")


def html_page(title: str, reasons: Sequence[str], body: str, remarks: Sequence[str]) -> str:
    """Return a self-contained page: a title (marked if stand-in), `body`, then `remarks`."""
    title = _UNPRINTED.sub("", title)
    mark = f' <span class="standin">{standin.WORD}</span>' if reasons else ""
    items = "".join(f"<li>{html.escape(remark)}</li>\n" for remark in remarks)
    return (
        f'<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        f"<title>{html.escape(title + standin.title_mark(reasons, title))}</title>\n"
        f"<style>{_STYLE}</style>\n</head>\n<body>\n<h1>{html.escape(title)}{mark}</h1>\n"
        f'<div class="scroll">\n{body}</div>\n<ul>\n{items}</ul>\n</body>\n</html>\n'
    )


def to_html(table: Table) -> str:
    """Return a self-contained page with the table.

    A cell's title holds its interval; where intervals are shown, so does a small line below it.
    """
    grouped = any(row.group for row in table.rows)
    widths = [3 if table.has_paper(column) else 1 for column in table.columns]
    lines = ["<table>\n<thead>\n", _html_heads(table, grouped, widths), "</thead>\n<tbody>\n"]
    for i, row in enumerate(table.rows):
        first = i > 0 and row.group != table.rows[i - 1].group
        classes = " ".join(["first"] * first + ["average"] * row.is_average)
        lines.append(f'<tr class="{classes}">' if classes else "<tr>")
        if grouped:
            lines.append(f'<td class="text group">{html.escape(*group_label(table, i))}</td>')
        lines.append(f'<td class="text label">{html.escape(row.label)}</td>')
        lines += [f'<td class="text">{html.escape(text)}</td>' for text in row.attributes]
        for column, width in zip(table.columns, widths, strict=True):
            lines.append(_html_cell(table.cell(row, column), column.digits, width, table.intervals))
        lines.append("</tr>\n")
    lines.append("</tbody>\n</table>\n")
    title = f"Table {table.number}: {table.title}"
    return html_page(title, table.standin, "".join(lines), notes(table))


def _html_cell(cell: Cell, digits: int, width: int, intervals: bool) -> str:
    title, below, interval = "", "", bracket(cell, digits)
    if interval:
        title = f' title="95 % interval: {interval[1:-1].replace(", ", " to ")}"'
    if interval and intervals:
        below = f'<span class="interval">{interval}</span>'
    text = f'<td class="start"{title}>{html.escape(ours(cell, digits))}{below}</td>'
    if width == 3:
        text += f'<td class="paper">{number(cell.paper, digits)}</td>'
        text += f'<td class="difference">{signed(cell.difference, digits)}</td>'
    return text


def _html_heads(table: Table, grouped: bool, widths: list[int]) -> str:
    num_texts = grouped + 1 + len(table.attributes)
    lines = []
    if any(column.group for column in table.columns):
        groups: list[list] = []
        for column, width in zip(table.columns, widths, strict=True):
            if groups and groups[-1][0] == column.group:
                groups[-1][1] += width
            else:
                groups.append([column.group, width])
        heads = "".join(
            f'<th class="{"span start" if g else ""}" colspan="{w}">{html.escape(g)}</th>'
            for g, w in groups
        )
        lines.append(f'<tr><th colspan="{num_texts}"></th>{heads}</tr>\n')
    texts = [*([""] if grouped else []), table.corner, *table.attributes]
    cells = [f'<th class="text">{html.escape(text)}</th>' for text in texts]
    for column, width in zip(table.columns, widths, strict=True):
        style = "span start" if width == 3 else "start"
        cells.append(f'<th class="{style}" colspan="{width}">{html.escape(column.label)}</th>')
    lines.append(f"<tr>{''.join(cells)}</tr>\n")
    if 3 in widths:
        subheads = [["ours", "paper", "Δ"] if w == 3 else [""] for w in widths]
        cells = [
            f'<th class="sub{" start" * (i == 0)}">{text}</th>'
            for sub in subheads
            for i, text in enumerate(sub)
        ]
        lines.append(f'<tr><th colspan="{num_texts}"></th>{"".join(cells)}</tr>\n')
    return "".join(lines)
