"""Tables as LaTeX (booktabs)."""

from collections.abc import Sequence

from interlace.reporting import standin
from interlace.reporting.cells import bracket, deviation, group_label, notes, number, ours, signed
from interlace.reporting.layout import Row, Table

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
    "±": r"$\pm$",
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

    Under each column: ours, the paper's and the difference, where the paper has the column; below
    them the spread over seeds, and our interval where intervals are shown.
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
        rf"\begin{{tabular}}{{{'l' * num_texts}{_latex_columns(widths)}}}",
        r"\toprule",
        *_latex_heads(table, num_texts, widths),
        r"\midrule",
    ]
    for i, row in enumerate(table.rows):
        if i and row.group != table.rows[i - 1].group:
            lines.append(r"\midrule" if row.is_average else r"\addlinespace")
        cells = [*(group_label(table, i) if grouped else []), row.label, *row.attributes]
        for column, width in zip(table.columns, widths, strict=True):
            cell = table.cell(row, column)
            cells.append(ours(cell, column.digits, spread=False))
            if width == 3:
                cells += [number(cell.paper, column.digits), signed(cell.difference, column.digits)]
        lines.append(_latex_row([latex_escape(cell) for cell in cells]))
        lines += _latex_below(table, row, num_texts, widths)
    lines += [
        r"\bottomrule",
        r"\end{tabular}}%",
        r"\ifdim\wd2>\linewidth\resizebox{\linewidth}{!}{\copy2}\else\leavevmode\copy2\fi",
        *_latex_notes(table),
        r"\end{table*}",
        "",
    ]
    return "\n".join(lines)


def _latex_columns(widths: list[int]) -> str:
    """Return the numbers' columns, with some room between ours, paper, Δ and the next three."""
    return "".join("r" if width == 1 else r"@{\hskip 7pt}rrr" for width in widths)


def _latex_below(table: Table, row: Row, num_texts: int, widths: list[int]) -> list[str]:
    """Return a line of small spreads and intervals under a row's numbers, if it has any.

    They stretch across ours, the paper's and Δ, so that columns get no wider by them.
    """
    texts = []
    for column in table.columns:
        cell = table.cell(row, column)
        interval = bracket(cell, column.digits) if table.intervals else ""
        texts.append(f"{deviation(cell, column.digits)} {interval}".strip())
    if not any(texts):
        return []
    spans = [
        rf"\multicolumn{{{width}}}{{{'l' if width == 3 else 'r'}}}{{{{\tiny {latex_escape(text)}}}}}"
        if text
        else " & " * (width - 1)
        for text, width in zip(texts, widths, strict=True)
    ]
    # A little closer to the numbers than to the next row.
    return [r"\noalign{\vskip-1pt}", _latex_row([*[""] * num_texts, *spans])]


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
