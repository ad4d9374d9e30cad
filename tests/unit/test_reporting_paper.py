"""The paper's own cells against each other: averages, Table 3 and Table 1 from Table 5, the audit."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from interlace.reporting import audit as auditing
from interlace.reporting import averages
from interlace.reporting.build import build_audit
from interlace.reporting.paper import MODELS, RATIOS, load_paper

PAPER = load_paper()
FINDINGS = auditing.audit(PAPER)


def by_rule(start: str) -> list[auditing.Finding]:
    return [finding for finding in FINDINGS if finding.rule.startswith(start)]


def test_the_paper_is_whole():
    assert len(PAPER.names) == 12
    assert [len(names) for names in PAPER.categories.values()] == [4, 3, 3, 2]
    for table in (1, 4):
        for model in MODELS:
            for ratio in RATIOS:
                assert all(PAPER.cell(table, n, f"{model}_{ratio}") for n in PAPER.names)
    assert PAPER.cell(2, "Wanda 2:4", "average") == 7.2
    assert PAPER.cell(1, "AI2D", "8B_30") is None
    assert PAPER.cell(2, "ShortGPT", "average") is None


def test_all_20_cells_of_table_3_follow_from_table_5():
    findings = by_rule("Table 3: mean over benchmarks")
    assert len(findings) == 20
    assert all(finding.agrees and finding.tolerance == 0.1 for finding in findings)


def test_table_1_at_25_percent_follows_from_table_5():
    findings = by_rule("Table 1, 8B 25 %")
    assert len(findings) == 12
    assert all(finding.agrees and finding.tolerance == 0.2 for finding in findings)


@pytest.mark.parametrize(("table", "tolerance"), [(1, 0.1), (4, 0.01)])
def test_every_average_of_tables_1_and_4_follows(table, tolerance):
    findings = by_rule(f"Table {table}: averages")
    assert len(findings) == 40
    assert all(finding.agrees and finding.tolerance == tolerance for finding in findings)


def test_what_contradicts_itself_is_found_and_nothing_else():
    found = {(f.cell, f.printed, round(f.computed, f.digits)) for f in FINDINGS if not f.agrees}
    assert found == {
        ("Dense, Inst&Sci", 74.9, 80.1),
        ("Dense, average", 77.8, 78.7),
        ("Dense-FT, Inst&Sci", 82.4, 86.7),
        ("Dense-FT, average", 80.5, 81.2),
        ("Dense", 97.1, 96.6),
        ("Magnitude 2:4", 9.5, 9.6),
        ("SLEB", 60.5, 60.4),
        ("SLEB, TTFT speed-up", 1.12, 1.18),
        ("SLEB-FT, TTFT speed-up", 1.12, 1.18),
        ("introduction against Table 1", 92.1, 86.1),
        ("introduction against Table 2", 92.1, 88.9),
        ("Table 2 (limited) against Table 1 (CoT)", 88.9, 86.1),
        ("as percent", 28.4, 46.9),
    }


def test_a_changed_cell_is_noticed():
    tables = {number: frame.copy() for number, frame in PAPER.tables.items()}
    tables[4].loc["POPE", "4B_20"] += 0.1
    tables[5].loc["AI2D", "Random"] += 5
    changed = auditing.audit(type(PAPER)(PAPER.benchmarks, tables))
    new = {f.cell for f in changed if not f.agrees} - {f.cell for f in FINDINGS if not f.agrees}
    assert {"GVQA, 4B 20 %", "Random, Text/Chart", "Random"} <= new


def test_the_audit_is_written_with_contradictions_first(tmp_path):
    build_audit(tmp_path / "audit")
    text = (tmp_path / "audit.md").read_text(encoding="utf-8")
    first, second = text.split("## Everything that was recomputed")
    assert f"{len(FINDINGS)} printed numbers" in first
    assert first.count("| NO |") == second.count("| NO |") == 13
    assert "| yes |" not in first
    assert "1.33×" in first
    html = (tmp_path / "audit.html").read_text(encoding="utf-8")
    assert html.count("<td>NO</td>") == 26
    assert "Inst&amp;Sci" in html


# -- averages -------------------------------------------------------------------------------------

SCORES = st.dictionaries(st.sampled_from(PAPER.names), st.floats(1, 100), max_size=12)


@given(SCORES)
def test_an_average_covers_what_is_there_and_counts_it(values):
    mean = averages.average(values, PAPER.names)
    assert (mean.count, mean.total) == (len(values), 12)
    assert mean.complete == (len(values) == 12)
    if values:
        assert min(values.values()) - 1e-9 <= mean.value <= max(values.values()) + 1e-9
    else:
        assert mean.value is None


@given(SCORES, SCORES)
def test_ratios_never_mix_unlike_sets(values, reference):
    shared = values.keys() & reference.keys()
    assert averages.relative(values, reference).keys() == shared
    assert averages.mean_of_ratios(values, reference, PAPER.names).count == len(shared)
    performance = averages.relative_performance(values, reference, PAPER.names)
    assert performance.count == len(shared)
    itself = averages.relative_performance(reference, reference, PAPER.names)
    assert itself.value is None if not reference else itself.value == pytest.approx(100)


def test_ratio_of_means_and_mean_of_ratios_differ():
    values, reference = {"AI2D": 10.0, "POPE": 90.0}, {"AI2D": 20.0, "POPE": 90.0}
    names = ("AI2D", "POPE")
    assert averages.mean_of_ratios(values, reference, names).value == pytest.approx(75)
    performance = averages.relative_performance(values, reference, names)
    assert performance.value == pytest.approx(100 * 50 / 55)


def test_a_zero_reference_gives_no_ratio():
    assert averages.relative({"AI2D": 3.0}, {"AI2D": 0.0}) == {}
    assert averages.relative_performance({"AI2D": 3.0}, {"AI2D": 0.0}, ["AI2D"]).value is None
