"""The paper's printed numbers against each other: what follows from what, and what does not.

Nothing here is a list of known mistakes: every finding is a printed number beside the one that the
paper's other cells give.
"""

import html
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from interlace.reporting import averages
from interlace.reporting.paper import (
    GAIN_OVER_SLEB,
    MODELS,
    NUM_LAYERS,
    OVERALL,
    RATIOS,
    RETENTION_25_INTRODUCTION,
    Paper,
)
from interlace.reporting.render import html_page, signed, write_formats

_EPSILON = 1e-9
"""Printed decimals are not exact in binary; a difference of exactly the tolerance agrees."""


@dataclass(frozen=True)
class Finding:
    """One printed number and the one that follows from other printed numbers.

    `rule` says from which and how. The computed number is rounded to the `digits` decimals that
    the paper prints before it is compared; `tolerance` is what rounding of its inputs may excuse.
    """

    rule: str
    cell: str
    printed: float
    computed: float
    tolerance: float
    digits: int = 1

    @property
    def difference(self) -> float:
        """Printed minus computed, the latter rounded as the paper prints."""
        return self.printed - round(self.computed, self.digits)

    @property
    def agrees(self) -> bool:
        """Whether printed and computed number lie within the tolerance."""
        return abs(self.difference) <= self.tolerance + _EPSILON


def audit(paper: Paper) -> list[Finding]:
    """Return every check of the paper against itself, agreeing or not, in the paper's order."""
    return [
        *_table1_averages(paper),
        *_table1_from_table5(paper),
        *_table2_averages(paper),
        *_table2_relative_performance(paper),
        *_table2_from_table6(paper),
        *_table3_from_table5(paper),
        *_table4_averages(paper),
        *_table2_from_table4(paper),
        *_overall(paper, 5, ("Consecutive", "Random", "INTERLACE-OA", "INTERLACE-TN", "INTERLACE")),
        *_overall(paper, 5, ("Dense",)),
        *_overall(paper, 6, ("cot_Dense", "cot_Dense-FT", "limited_Dense", "limited_Dense-FT")),
        *_table5_from_table6(paper),
        *_prose(paper),
    ]


def contradictions(findings: list[Finding]) -> list[Finding]:
    """Return the findings that do not agree."""
    return [finding for finding in findings if not finding.agrees]


def _averages(paper: Paper, table: int, tolerance: float, digits: int) -> Iterator[Finding]:
    rule = f"Table {table}: averages are flat means of its benchmarks"
    groups = {**paper.categories, OVERALL: paper.names}
    for column in (f"{model}_{ratio}" for model in MODELS for ratio in RATIOS):
        for row, names in groups.items():
            mean = averages.average(paper.column(table, column, names), names).value
            assert mean is not None
            printed = paper.column(table, column, [row])[row]
            yield Finding(rule, f"{row}, {_named(column)}", printed, mean, tolerance, digits)


def _table1_averages(paper: Paper) -> Iterator[Finding]:
    return _averages(paper, 1, 0.1, 1)


def _table4_averages(paper: Paper) -> Iterator[Finding]:
    return _averages(paper, 4, 0.01, 2)


def _table1_from_table5(paper: Paper) -> Iterator[Finding]:
    pruned, dense = (paper.column(5, name, paper.names) for name in ("INTERLACE", "Dense"))
    computed = averages.relative(pruned, dense)
    printed = paper.column(1, "8B_25", paper.names)
    for name in paper.names:
        yield Finding(
            "Table 1, 8B 25 %: 100 × INTERLACE / Dense of Table 5",
            name,
            printed[name],
            computed[name],
            0.2,
        )


def _table2_averages(paper: Paper) -> Iterator[Finding]:
    for method, row in paper.tables[2].iterrows():
        mean = averages.mean_of_categories(row[list(paper.categories)], paper.categories)
        rule = "Table 2: average is the flat mean of the 12 (categories weighted by their size)"
        yield Finding(rule, str(method), float(row["average"]), mean, 0.1)


def _table2_relative_performance(paper: Paper) -> Iterator[Finding]:
    """Both are a ratio of the two printed averages, so they must round alike."""
    reference = paper.column(2, "average", ["Dense-FT"])["Dense-FT"]
    for method, row in paper.tables[2].iterrows():
        computed = 100 * float(row["average"]) / reference
        yield Finding(
            "Table 2: relative performance is 100 × average / Dense-FT's average",
            str(method),
            float(row["relative_performance"]),
            computed,
            0.0,
        )


def _table2_from_table6(paper: Paper) -> Iterator[Finding]:
    rule = "Table 2 (limited): Dense and Dense-FT are the models of Table 6 (limited)"
    for method in ("Dense", "Dense-FT"):
        values = paper.column(6, f"limited_{method}", paper.names)
        for name, members in {**paper.categories, "average": paper.names}.items():
            mean = averages.average(values, members).value
            assert mean is not None
            printed = float(paper.tables[2].at[method, name])
            yield Finding(rule, f"{method}, {name}", printed, mean, 0.1)


def _table3_from_table5(paper: Paper) -> Iterator[Finding]:
    reference = paper.column(5, "INTERLACE", paper.names)
    for method in paper.tables[3].index:
        values = paper.column(5, method, paper.names)
        for name, members in {**paper.categories, "average": paper.names}.items():
            mean = averages.mean_of_ratios(values, reference, members).value
            assert mean is not None
            yield Finding(
                "Table 3: mean over benchmarks of 100 × method / INTERLACE of Table 5",
                f"{method}, {name}",
                float(paper.tables[3].at[method, name]),
                mean,
                0.1,
            )


def _table2_from_table4(paper: Paper) -> Iterator[Finding]:
    printed = float(paper.tables[2].at["INTERLACE", "ttft_speedup"])
    overall = paper.column(4, "8B_25", [OVERALL])[OVERALL]
    yield Finding(
        "Table 2: INTERLACE's speed-up is Table 4's overall, 8B 25 %",
        "INTERLACE, TTFT speed-up",
        printed,
        overall,
        0.01,
        2,
    )
    layers = NUM_LAYERS - NUM_LAYERS * 25 // 100
    for method in ("SLEB", "SLEB-FT"):
        yield Finding(
            f"Table 2: equal depth ({layers} layers) means equal prefill, so INTERLACE's speed-up "
            f"(the decoder alone allows {NUM_LAYERS / layers:.2f}×)",
            f"{method}, TTFT speed-up",
            float(paper.tables[2].at[method, "ttft_speedup"]),
            printed,
            0.01,
            2,
        )


def _overall(paper: Paper, table: int, columns: tuple[str, ...]) -> Iterator[Finding]:
    for column in columns:
        mean = averages.average(paper.column(table, column, paper.names), paper.names).value
        assert mean is not None
        printed = paper.column(table, column, [OVERALL])[OVERALL]
        rule = f"Table {table}: overall is the flat mean of its benchmarks"
        yield Finding(rule, column.replace("_", " "), printed, mean, 0.1)


def _table5_from_table6(paper: Paper) -> Iterator[Finding]:
    rows = (*paper.names, OVERALL)
    printed, computed = paper.column(5, "Dense", rows), paper.column(6, "cot_Dense", rows)
    for name in rows:
        rule = "Table 5: Dense is the Dense of Table 6 (CoT)"
        yield Finding(rule, name, printed[name], computed[name], 0.0)


def _prose(paper: Paper) -> Iterator[Finding]:
    limited = float(paper.tables[2].at["INTERLACE", "relative_performance"])
    sleb = float(paper.tables[2].at["SLEB", "relative_performance"])
    cot = paper.column(1, "8B_25", [OVERALL])[OVERALL]
    rule = "Prose: one number for what INTERLACE keeps at 25 % (Table 1: of Dense, CoT; Table 2: of Dense-FT)"
    yield Finding(rule, "introduction against Table 1", RETENTION_25_INTRODUCTION, cot, 0.1)
    yield Finding(rule, "introduction against Table 2", RETENTION_25_INTRODUCTION, limited, 0.1)
    yield Finding(rule, "Table 2 (limited) against Table 1 (CoT)", limited, cot, 0.1)
    fifteen = paper.column(1, "8B_15", [OVERALL])[OVERALL]
    yield Finding(
        "Prose: the introduction's number is Table 1's 8B at 15 %",
        "introduction against Table 1, 15 %",
        RETENTION_25_INTRODUCTION,
        fifteen,
        0.1,
    )
    gain = 100 * (limited / sleb - 1)
    rule = 'Prose: INTERLACE is "28.4 %" better than SLEB (Table 2, relative performance)'
    yield Finding(rule, "as percent", GAIN_OVER_SLEB, gain, 0.1)
    yield Finding(rule, "as percentage points", GAIN_OVER_SLEB, limited - sleb, 0.1)


def _named(column: str) -> str:
    model, ratio = column.split("_")
    return f"{model} {ratio} %"


# -- written down ---------------------------------------------------------------------------------

_TITLE = "Audit of the paper's printed numbers"
_HEAD = ("Cell", "Printed", "Computed", "Difference", "Tolerance", "Agrees")
_NOTE = (
    "Printed: the paper's cell. Computed: what the paper's other cells give by the rule, rounded as "
    "the paper prints it. "
    "Nothing here depends on a run of ours."
)


def _row(finding: Finding) -> tuple[str, ...]:
    digits = finding.digits
    return (
        finding.cell,
        f"{finding.printed:.{digits}f}",
        f"{finding.computed:.{digits}f}",
        signed(finding.difference, digits),
        f"{finding.tolerance:g}",
        "yes" if finding.agrees else "NO",
    )


def _by_rule(findings: list[Finding]) -> dict[str, list[Finding]]:
    groups: dict[str, list[Finding]] = {}
    for finding in findings:
        groups.setdefault(finding.rule, []).append(finding)
    return groups


def _summary(findings: list[Finding]) -> str:
    failing = contradictions(findings)
    return (
        f"{len(findings)} printed numbers recomputed, {len(findings) - len(failing)} agree, "
        f"{len(failing)} do not."
    )


def to_markdown(findings: list[Finding]) -> str:
    """Return the audit: what contradicts first, then every rule with every cell."""
    lines = [f"# {_TITLE}", "", _summary(findings), "", _NOTE, ""]
    for title, chosen in (
        ("Where the paper contradicts itself", contradictions(findings)),
        ("Everything that was recomputed", findings),
    ):
        lines += [f"## {title}", ""]
        for rule, group in _by_rule(chosen).items():
            agree = sum(finding.agrees for finding in group)
            count = f" ({agree} of {len(group)} agree)" if chosen is findings else ""
            lines += [f"### {rule}{count}", "", "| " + " | ".join(_HEAD) + " |"]
            lines.append("| --- |" + " ---: |" * (len(_HEAD) - 2) + " --- |")
            lines += ["| " + " | ".join(_row(finding)) + " |" for finding in group]
            lines.append("")
    return "\n".join(lines)


def to_html(findings: list[Finding]) -> str:
    """Return the audit as a self-contained page."""
    parts = [f"<p>{_summary(findings)}</p>\n"]
    for title, chosen in (
        ("Where the paper contradicts itself", contradictions(findings)),
        ("Everything that was recomputed", findings),
    ):
        heads = "".join(
            f'<th class="{"text" if i == 0 else ""}">{head}</th>' for i, head in enumerate(_HEAD)
        )
        parts.append(f"<h2>{title}</h2>\n<table>\n<thead><tr>{heads}</tr></thead>\n<tbody>\n")
        for rule, group in _by_rule(chosen).items():
            agree = sum(finding.agrees for finding in group)
            count = f" ({agree} of {len(group)} agree)" if chosen is findings else ""
            parts.append(
                f'<tr class="first average"><td class="text" colspan="{len(_HEAD)}">'
                f"{html.escape(rule + count)}</td></tr>\n"
            )
            for finding in group:
                cells = [html.escape(text) for text in _row(finding)]
                rest = "".join(f"<td>{text}</td>" for text in cells[1:])
                parts.append(f'<tr><td class="text">{cells[0]}</td>{rest}</tr>\n')
        parts.append("</tbody>\n</table>\n")
    return html_page(_TITLE, (), "".join(parts), [_NOTE])


def write_audit(paper: Paper, stem: Path) -> list[Finding]:
    """Write `stem`.md and `stem`.html; return the findings."""
    findings = audit(paper)
    write_formats(stem, {".md": to_markdown(findings), ".html": to_html(findings)})
    return findings
