"""Comparisons of methods written down: CSV, Markdown, LaTeX (booktabs) and HTML."""

import csv
import html
import io
from collections.abc import Sequence
from itertools import groupby
from pathlib import Path

from interlace.evaluation.intervals import DEFINED, FEWEST_QUESTIONS, RESAMPLES
from interlace.reporting import standin
from interlace.reporting.cells import MISSING, PARTIAL, signed, signless
from interlace.reporting.latex import latex_escape
from interlace.reporting.notes import resampling
from interlace.reporting.paper import OVERALL
from interlace.reporting.render import html_page, write_formats
from interlace.reporting.significance import LEVEL, TOO_FEW, UNDEFINED, UNKNOWN, Comparison

TITLE = "Differences between methods"
HEAD = ("Method", "Difference", "95 % interval", "p", "p (Holm)", "Verdict", "Questions")
_CSV_HEAD = (
    *("table", "scope", "method", "against", "difference", "difference_low", "difference_high"),
    *("p", "p_holm", "comparisons", "verdict", "questions", "benchmarks", "seeds", "seeds_against"),
    "note",
)


def write_significance(
    comparisons: Sequence[Comparison],
    reasons: Sequence[str],
    seed: int,
    stem: Path,
    remarks: Sequence[str] = (),
) -> list[Path]:
    """Write `stem`.csv with every comparison, .md, .tex and .html with those over all benchmarks.

    `reasons`: why our numbers stand in, if they do; `seed`: of the resamples, for the notes.
    `remarks`: further notes, about the results.
    """
    overall = [c for c in comparisons if c.scope == OVERALL]
    first = standin.sentence(reasons)
    notes = [*([first] if first else []), *_notes(comparisons, overall, seed), *remarks]
    return write_formats(
        stem,
        {
            ".csv": to_csv(comparisons, reasons),
            ".md": to_markdown(overall, reasons, notes),
            ".tex": to_latex(overall, reasons, notes),
            ".html": to_html(overall, reasons, notes),
        },
    )


def _notes(
    comparisons: Sequence[Comparison], overall: Sequence[Comparison], seed: int
) -> list[str]:
    if not overall:
        return ["No two methods of these tables have results."]
    smallest = 2 / (RESAMPLES + 1)
    notes = [
        "Difference: the method's average minus the other's. Tables 2 and 5: of the scores, in "
        "points of 0-100; Table 3: of the mean ratio to the main method, in percent. Every pair "
        "stands once.",
        f"Intervals: 95 %, {resampling(seed)}.",
        f"p: two-sided, paired permutation test: {RESAMPLES:,} random swaps of the two methods' "
        "answers, question by question, twice the share that goes as far in the same direction; never "
        f"below {smallest:.3f}. It may disagree with the interval where few answers differ. Holm: adjusted "
        f"for the comparisons of one table. Better or worse: adjusted p below {LEVEL:g}. The "
        "categories are in the CSV, each adjusted by itself.",
    ]
    if any(c.family * smallest >= LEVEL for c in comparisons):
        notes.append(
            f"With {max(c.family for c in comparisons)} comparisons and {RESAMPLES:,} resamples no "
            "adjusted p can fall below the level: drop methods or tables to compare fewer."
        )
    if any(max(c.seeds) > 1 for c in comparisons):
        notes.append(
            "Methods stand at the mean over their seeds; the interval is of the questions alone and "
            "does not hold the spread of training."
        )
    elif any(c.verdict != UNKNOWN for c in comparisons):
        notes.append("One seed per method: how training itself varies is not in the interval.")
    if any(c.partial for c in comparisons):
        notes.append(f"{PARTIAL} from part of a benchmark (evaluation.limit).")
    if any(c.coverage for c in comparisons):
        notes.append("[n/m] over the n of the paper's m benchmarks that both have.")
    few = sum(c.verdict == TOO_FEW for c in overall)
    if few:
        notes.append(
            f"{TOO_FEW.capitalize()}: {few} of {len(overall)} comparisons, with fewer than "
            f"{FEWEST_QUESTIONS} of a benchmark; no interval and no verdict."
        )
    undefined = [c.defined for c in overall if c.verdict == UNDEFINED]
    if undefined:
        notes.append(
            f"{UNDEFINED.capitalize()}: {len(undefined)} of {len(overall)} comparisons, whose "
            f"difference exists in fewer than {100 * DEFINED:.0f} % of the resamples "
            f"({100 * min(undefined):.1f} % at the least): the main method scores 0 in the others."
        )
    lacking = sum(c.verdict == UNKNOWN for c in overall)
    if lacking:
        notes.append(
            f"No interval and no verdict: {lacking} of {len(overall)} comparisons, whose results have "
            "no outcomes of single samples beside them (.parquet)."
        )
    return notes


def _difference(comparison: Comparison) -> str:
    text = signed(comparison.difference, 2)
    if comparison.partial:
        text += PARTIAL
    if comparison.coverage:
        text += f" [{comparison.coverage[0]}/{comparison.coverage[1]}]"
    return text


def _texts(comparison: Comparison) -> list[str]:
    """Return a row's texts in the order of `HEAD`."""
    low, high, questions = comparison.low, comparison.high, comparison.num_questions
    return [
        comparison.method,
        _difference(comparison),
        MISSING if low is None or high is None else f"{signless(low, 2)} to {signless(high, 2)}",
        _p_value(comparison.p),
        _p_value(comparison.adjusted),
        comparison.verdict,
        MISSING if questions is None else f"{questions:,}",
    ]


def _p_value(p: float | None) -> str:
    return MISSING if p is None else f"{p:.3f}"


def _groups(comparisons: Sequence[Comparison]) -> list[tuple[str, list[Comparison]]]:
    """Return (heading, comparisons) for each table and what its methods are compared with."""
    return [
        (f"Table {table}: against {against}", list(found))
        for (table, against), found in groupby(comparisons, key=lambda c: (c.table, c.against))
    ]


def to_csv(comparisons: Sequence[Comparison], reasons: Sequence[str]) -> str:
    """Return a line per comparison, over all benchmarks and by category."""
    stream = io.StringIO()
    writer = csv.writer(stream, lineterminator="\n")
    writer.writerow(_CSV_HEAD)
    for c in comparisons:
        numbers = [c.difference, c.low, c.high, c.p, c.adjusted]
        notes = [standin.remark(reasons)] if reasons else []
        notes += ["part of a benchmark"] if c.partial else []
        notes += [f"{c.coverage[0]} of {c.coverage[1]} benchmarks"] if c.coverage else []
        writer.writerow(
            [c.table, c.scope, c.method, c.against]
            + ["" if value is None else f"{value:.6g}" for value in numbers]
            + [c.family, c.verdict, "" if c.num_questions is None else c.num_questions]
            + [c.num_benchmarks, *c.seeds, "; ".join(notes)]
        )
    return stream.getvalue()


def to_markdown(
    comparisons: Sequence[Comparison], reasons: Sequence[str], notes: Sequence[str]
) -> str:
    """Return a Markdown table for each table and reference."""
    lines = [f"# {TITLE}{standin.title_mark(reasons)}", ""]
    for heading, found in _groups(comparisons):
        lines += [f"## {heading}", "", f"| {' | '.join(HEAD)} |"]
        lines.append("| --- | ---: | ---: | ---: | ---: | --- | ---: |")
        rows = [[text.replace("|", "\\|") for text in _texts(c)] for c in found]
        lines += [f"| {' | '.join(row)} |" for row in rows] + [""]
    return "\n".join([*lines, *(f"- {note}" for note in notes), ""])


def to_latex(
    comparisons: Sequence[Comparison], reasons: Sequence[str], notes: Sequence[str]
) -> str:
    r"""Return a `table*` with booktabs rules (needs booktabs)."""
    lines = [
        r"% needs \usepackage{booktabs}",
        r"\begin{table*}[t]",
        r"\centering",
        rf"\caption{{{TITLE}{standin.title_mark(reasons)}.}}",
        r"\label{tab:significance}",
        r"\scriptsize",
        r"\begin{tabular}{lrrrrlr}",
        r"\toprule",
        " & ".join(latex_escape(text) for text in HEAD) + r" \\",
    ]
    for heading, found in _groups(comparisons):
        lines += [
            r"\midrule",
            rf"\multicolumn{{{len(HEAD)}}}{{l}}{{\textit{{{latex_escape(heading)}}}}} \\",
        ]
        lines += [" & ".join(map(latex_escape, _texts(c))) + r" \\" for c in found]
    told = r"\par ".join(latex_escape(note) for note in notes)
    return "\n".join(
        [
            *lines,
            r"\bottomrule",
            r"\end{tabular}",
            "",
            r"\vspace{2pt}",
            rf"\parbox{{\linewidth}}{{\scriptsize {told}}}",
            r"\end{table*}",
            "",
        ]
    )


def to_html(comparisons: Sequence[Comparison], reasons: Sequence[str], notes: Sequence[str]) -> str:
    """Return a self-contained page, a verdict other than no difference in bold."""
    left = (0, 5)
    heads = [_html_cell(html.escape(text), i in left, "th") for i, text in enumerate(HEAD)]
    lines = [f"<table>\n<thead><tr>{''.join(heads)}</tr></thead>\n<tbody>\n"]
    for heading, found in _groups(comparisons):
        lines.append(
            f'<tr class="first average"><td class="text" colspan="{len(HEAD)}">'
            f"{html.escape(heading)}</td></tr>\n"
        )
        for comparison in found:
            cells = [html.escape(text) for text in _texts(comparison)]
            if comparison.adjusted is not None and comparison.adjusted < LEVEL:
                cells[5] = f"<b>{cells[5]}</b>"
            lines += ["<tr>", *(_html_cell(c, i in left) for i, c in enumerate(cells)), "</tr>\n"]
    lines.append("</tbody>\n</table>\n")
    return html_page(TITLE, reasons, "".join(lines), notes)


def _html_cell(text: str, left: bool, tag: str = "td") -> str:
    return f'<{tag} class="text">{text}</{tag}>' if left else f"<{tag}>{text}</{tag}>"
