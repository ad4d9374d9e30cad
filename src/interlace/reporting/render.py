"""Tables written down: CSV (long, for machines), Markdown, LaTeX (booktabs) and HTML."""

import csv
import html
import io
from collections.abc import Sequence
from pathlib import Path

from interlace.io import write_text
from interlace.reporting import standin
from interlace.reporting.layout import Cell, Column, Row, Table

MISSING = "–"
PARTIAL = "†"
CSV_COLUMNS = (
    "table",
    "row_group",
    "row",
    "column_group",
    "column",
    "ours",
    "ours_low",
    "ours_high",
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


def number(value: float | None, digits: int) -> str:
    """Return a rounded number, or a dash for None."""
    return MISSING if value is None else f"{value:.{digits}f}"


def signed(value: float | None, digits: int) -> str:
    """Return a rounded difference with its sign, or a dash for None; zero has no sign."""
    if value is None:
        return MISSING
    text = f"{value:+.{digits}f}"
    return text[1:] if float(text) == 0 else text.replace("-", "−")


def ours(cell: Cell, digits: int) -> str:
    """Return our number with its marks: † from a part, [n/m] from fewer benchmarks."""
    text = number(cell.ours, digits)
    if cell.partial:
        text += PARTIAL
    if cell.coverage:
        text += f" [{cell.coverage[0]}/{cell.coverage[1]}]"
    return text


def heading(table: Table) -> str:
    """Return `Table 1: title`, marked where it is a stand-in."""
    return f"Table {table.number}: {table.title}{standin.title_mark(table.standin, table.title)}"


def notes(table: Table) -> list[str]:
    """Return the notes under a table, what stands in first."""
    first = standin.sentence(table.standin)
    return [*([first] if first else []), *table.notes]


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
            values = (cell.ours, cell.low, cell.high, cell.paper, cell.difference)
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
            *(_group_label(table, i) if grouped else []),
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
    if not table.has_paper(column):
        return text
    return (
        f"{text} / {number(cell.paper, column.digits)} / {signed(cell.difference, column.digits)}"
    )


def _group_label(table: Table, index: int) -> list[str]:
    """Return the group of a row if it is the first of the group, else an empty text."""
    row = table.rows[index]
    first = index == 0 or table.rows[index - 1].group != row.group
    return [row.group if first else ""]


# -- LaTeX ----------------------------------------------------------------------------------------

_LATEX = {
    "\\": r"\textbackslash{}",
    "&": r"\&",
    "%": r"\%",
    "$": r"\$",
    "#": r"\#",
    "_": r"\_",
    "{": r"\{",
    "}": r"\}",
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    "−": "$-$",
    "–": "--",
    "×": r"$\times$",
    "†": r"$^{\dagger}$",
    "Δ": r"$\Delta$",
    "<": "$<$",
    ">": "$>$",
    "|": r"$|$",
}


def latex_escape(text: str) -> str:
    """Return `text` with everything that LaTeX would read as a command made literal."""
    return "".join(_LATEX.get(character, character) for character in text)


def to_latex(table: Table) -> str:
    r"""Return a `table*` with booktabs rules, at most a line wide (needs booktabs and graphicx).

    Under each column: ours, the paper's and the difference, where the paper has the column.
    """
    grouped = any(row.group for row in table.rows)
    num_texts = grouped + 1 + len(table.attributes)
    widths = [3 if table.has_paper(column) else 1 for column in table.columns]
    lines = [
        r"% needs \usepackage{booktabs} and \usepackage{graphicx}",
        r"\begin{table*}[t]",
        r"\centering",
        rf"\caption{{{latex_escape(table.title + standin.title_mark(table.standin, table.title))}.}}",
        rf"\label{{tab:table{table.number}}}",
        r"\scriptsize\setlength{\tabcolsep}{1.6pt}",
        # Box 2 is a scratch register: the table is shrunk only where it is wider than the text.
        r"\setbox2=\hbox{%",
        rf"\begin{{tabular}}{{{'l' * num_texts}{'r' * sum(widths)}}}",
        r"\toprule",
        *_latex_heads(table, num_texts, widths),
        r"\midrule",
    ]
    for i, row in enumerate(table.rows):
        if i and row.group != table.rows[i - 1].group:
            lines.append(r"\midrule" if row.is_average else r"\addlinespace")
        cells = [*(_group_label(table, i) if grouped else []), row.label, *row.attributes]
        for column, width in zip(table.columns, widths, strict=True):
            cell = table.cell(row, column)
            cells.append(ours(cell, column.digits))
            if width == 3:
                cells += [number(cell.paper, column.digits), signed(cell.difference, column.digits)]
        lines.append(_latex_row([latex_escape(cell) for cell in cells]))
    lines += [
        r"\bottomrule",
        r"\end{tabular}}%",
        r"\ifdim\wd2>\linewidth\resizebox{\linewidth}{!}{\copy2}\else\leavevmode\copy2\fi",
        *_latex_notes(table),
        r"\end{table*}",
        "",
    ]
    return "\n".join(lines)


def _latex_heads(table: Table, num_texts: int, widths: list[int]) -> list[str]:
    """Return up to three heading rows: groups, columns, and ours / paper / difference."""
    lines = []
    if any(column.group for column in table.columns):
        cells, rules, at, start = [""] * num_texts, [], num_texts + 1, 0
        while start < len(table.columns):
            group, end = table.columns[start].group, start
            while end < len(table.columns) and table.columns[end].group == group:
                end += 1
            span = sum(widths[start:end])
            cells.append(rf"\multicolumn{{{span}}}{{c}}{{{latex_escape(group)}}}")
            if group:
                rules.append(rf"\cmidrule(lr){{{at}-{at + span - 1}}}")
            at, start = at + span, end
        lines += [_latex_row(cells), *filter(None, ["".join(rules)])]
    texts = [*([""] if num_texts > 1 + len(table.attributes) else []), table.corner]
    cells = [latex_escape(text) for text in (*texts, *table.attributes)]
    rules, at = [], num_texts + 1
    for column, width in zip(table.columns, widths, strict=True):
        label = latex_escape(column.label)
        cells.append(rf"\multicolumn{{{width}}}{{c}}{{{label}}}")
        if width == 3:
            rules.append(rf"\cmidrule(lr){{{at}-{at + 2}}}")
        at += width
    lines.append(_latex_row(cells))
    if 3 in widths:
        lines.append("".join(rules))
        subheads = [[r"ours", r"paper", r"$\Delta$"] if w == 3 else [""] for w in widths]
        lines.append(_latex_row([""] * num_texts + [text for sub in subheads for text in sub]))
    return lines


def _latex_row(cells: Sequence[str]) -> str:
    return " & ".join(cells) + r" \\"


def _latex_notes(table: Table) -> list[str]:
    texts = [latex_escape(note) for note in notes(table)]
    if not texts:
        return []
    return ["", r"\vspace{2pt}", r"\parbox{\linewidth}{\scriptsize " + r"\par ".join(texts) + "}"]


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
tbody tr.average td { background: #f5f7f9; }
td.group, td.paper, td.difference, thead th.sub { color: #59636e; font-weight: 400; }
td.start, th.start { padding-left: 1rem; }
.standin { display: inline-block; background: #fdf0d5; border: 1px solid #d9a441;
           border-radius: 3px; padding: .05rem .45rem; font-weight: 600; }
ul { font-size: .84rem; color: #424a53; padding-left: 1.1rem; }
"""


def html_page(title: str, reasons: Sequence[str], body: str, remarks: Sequence[str]) -> str:
    """Return a self-contained page: a title (marked if stand-in), `body`, then `remarks`."""
    mark = f' <span class="standin">{standin.WORD}</span>' if reasons else ""
    items = "".join(f"<li>{html.escape(remark)}</li>\n" for remark in remarks)
    return (
        f'<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        f"<title>{html.escape(title + standin.title_mark(reasons, title))}</title>\n"
        f"<style>{_STYLE}</style>\n</head>\n<body>\n<h1>{html.escape(title)}{mark}</h1>\n"
        f'<div class="scroll">\n{body}</div>\n<ul>\n{items}</ul>\n</body>\n</html>\n'
    )


def to_html(table: Table) -> str:
    """Return a self-contained page with the table; a cell's title holds its 95 % interval."""
    grouped = any(row.group for row in table.rows)
    widths = [3 if table.has_paper(column) else 1 for column in table.columns]
    lines = ["<table>\n<thead>\n", _html_heads(table, grouped, widths), "</thead>\n<tbody>\n"]
    for i, row in enumerate(table.rows):
        first = i > 0 and row.group != table.rows[i - 1].group
        classes = " ".join(["first"] * first + ["average"] * row.is_average)
        lines.append(f'<tr class="{classes}">' if classes else "<tr>")
        if grouped:
            lines.append(f'<td class="text group">{html.escape(*_group_label(table, i))}</td>')
        lines += [f'<td class="text">{html.escape(t)}</td>' for t in (row.label, *row.attributes)]
        for column, width in zip(table.columns, widths, strict=True):
            lines.append(_html_cell(table.cell(row, column), column.digits, width))
        lines.append("</tr>\n")
    lines.append("</tbody>\n</table>\n")
    title = f"Table {table.number}: {table.title}"
    return html_page(title, table.standin, "".join(lines), notes(table))


def _html_cell(cell: Cell, digits: int, width: int) -> str:
    title = ""
    if cell.low is not None and cell.high is not None:
        title = f' title="95 % interval: {cell.low:.{digits}f} to {cell.high:.{digits}f}"'
    text = f'<td class="start"{title}>{html.escape(ours(cell, digits))}</td>'
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
