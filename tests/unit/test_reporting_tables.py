import csv
import io
import re
import shutil
import subprocess

import numpy
import pytest

from interlace.errors import InputError
from interlace.io import write_json
from interlace.reporting import render
from interlace.reporting.build import build_samples_table, build_table
from interlace.reporting.labels import LABELS, Variant, parse_variant
from interlace.reporting.latex import latex_escape
from interlace.reporting.layout import Cell
from interlace.reporting.paper import load_paper
from interlace.reporting.results import Results, load_results
from interlace.reporting.tables import make_table
from interlace.reporting.timings import mean_interval
from interlace.selection import registry
from tests.unit.reporting_results import (
    EXPERIMENTS,
    MODELS,
    STANDIN,
    write_paper_as_results,
    write_score,
    write_timing,
)

PAPER = load_paper()


@pytest.fixture(scope="module")
def papers_own(tmp_path_factory) -> Results:
    """The paper's cells in the format of our results."""
    scores, timings = write_paper_as_results(tmp_path_factory.mktemp("results"))
    return load_results([*scores, *timings])


def table_of(number, results, experiments=EXPERIMENTS, models=MODELS, standin=()):
    return make_table(number, results, PAPER, models, experiments, standin)


def cells(table):
    return {
        (row.label, column.key): table.cell(row, column)
        for row in table.rows
        for column in table.columns
    }


# -- the right number in the right cell -----------------------------------------------------------


@pytest.mark.parametrize(("number", "tolerance"), [(3, 0.15), (4, 0.0101), (5, 0.06), (6, 0.06)])
def test_the_papers_scores_give_the_papers_table(papers_own, number, tolerance):
    table = table_of(number, papers_own)
    filled = [cell for cell in cells(table).values() if cell.paper is not None]
    assert len(filled) == {3: 20, 4: 17 * 8, 5: 13 * 6, 6: 13 * 4}[number]
    assert all(abs(cell.difference) < tolerance for cell in filled)


def test_table_1_divides_by_dense(papers_own):
    found = cells(table_of(1, papers_own))
    assert found["AI2D", "big 25"].ours == pytest.approx(100 * 72.3 / 85.7)
    assert found["AI2D", "big 25"].paper == 84.4
    assert found["Overall", "big 25"].ours == pytest.approx(86.1, abs=0.1)
    assert found["AI2D", "big 10"] == Cell(None, 93.4)
    assert found["AI2D", "own 25"] == Cell(None, None)


def test_table_2_has_the_papers_rows_and_says_what_was_not_run(papers_own):
    table = table_of(2, papers_own)
    assert [row.label for row in table.rows] == list(PAPER.tables[2].index)
    assert [row.attributes for row in table.rows[3:5]] == [("50 %", "no"), ("25 %", "no")]
    found = cells(table)
    assert found["Dense-FT", "average"].ours == pytest.approx(81.2, abs=0.05)
    assert found["Dense", "relative_performance"].ours == pytest.approx(
        100 * 78.69 / 81.18, abs=0.1
    )
    assert found["Dense", "ttft_speedup"] == Cell(1.0, 1.0)
    assert found["INTERLACE", "ttft_speedup"].ours == pytest.approx(1.18, abs=0.005)
    assert found["SLEB", "average"] == Cell(None, 48.6)
    assert any("no result: " in note for note in table.notes)


def timed(root, name, dense, pruned, **changes):
    pairs = zip(dense, pruned, strict=True)
    samples = [{"dense_s": d, "pruned_s": p, "visual_tokens": 64} for d, p in pairs]
    sides = {"dense": dense, "pruned": pruned}
    mean = {side: {"mean_s": sum(times) / len(times)} for side, times in sides.items()}
    return write_timing(
        root, "big", "interlace-25-ft", name, sum(dense) / sum(pruned), samples=samples,
        num_samples=len(samples), **mean, **changes,
    )  # fmt: skip


def test_averages_of_speed_ups_have_the_interval_of_their_benchmarks(tmp_path):
    rng = numpy.random.default_rng(0)
    gvqa = PAPER.categories["GVQA"]
    times = {name: rng.uniform(1, 2, size=(2, 8)) for name in (*gvqa, "POPE")}
    files = [timed(tmp_path, name, *map(list, both)) for name, both in times.items()]
    results = load_results(files)
    table = table_of(4, results)
    timings = results.timings["big", "interlace-25-ft"]
    found = table.cells["GVQA", "big 25"]
    assert (found.low, found.high) == mean_interval({name: timings[name] for name in gvqa}, 0)
    overall = table.cells["Overall", "big 25"]
    assert (overall.low, overall.high) == mean_interval(timings, 0)
    assert found.low < found.ours < found.high
    empty = table.cells["Overall", "big 10"]
    assert (empty.ours, empty.low) == (None, None)


@pytest.mark.parametrize("number", [2, 4])
def test_times_of_other_devices_do_not_share_a_table(tmp_path, number):
    files = [
        write_timing(tmp_path, "big", "interlace-25-ft", name, 1.2, device=device)
        for name, device in (("AI2D", "cpu"), ("POPE", "NVIDIA H100"))
    ]
    with pytest.raises(InputError, match="device"):
        table_of(number, load_results(files))


def test_speed_of_an_untuned_model_is_that_of_the_tuned_one(tmp_path):
    files = [write_timing(tmp_path, "big", "sleb-25", name, 1.3) for name in PAPER.names]
    found = cells(table_of(2, load_results(files)))
    assert found["SLEB-FT", "ttft_speedup"].ours == pytest.approx(1.3)
    assert found["Wanda 2:4", "ttft_speedup"].ours is None


def test_other_methods_and_ratios_get_cells_of_their_own(tmp_path):
    files = [
        write_score(tmp_path, "big", variant, mode, name, 50.0)
        for name in PAPER.names
        for variant, mode in (
            ("shortgpt-30-ft", "limited"),
            ("shortgpt-30-ft", "cot"),
            ("interlace-30-ft", "cot"),
            ("interlace-10-ft", "cot"),
            ("dense", "cot"),
        )
    ]
    experiments = EXPERIMENTS | {"ratio": 30, "ratios": [30]}
    results = load_results(files)
    second = table_of(2, results, experiments)
    assert [row.label for row in second.rows][-2:] == ["ShortGPT", "INTERLACE"]
    assert cells(second)["SLEB", "average"].paper is None, "the paper's SLEB is at 25 %"
    assert cells(second)["Dense", "average"].paper == 77.8
    third = table_of(3, results, experiments)
    assert cells(third)["ShortGPT", "average"] == Cell(pytest.approx(100.0))
    assert "interlace-10-ft" not in {row.key for row in third.rows}
    first = table_of(1, results, experiments)
    assert [column.label for column in first.columns] == ["30 %"] * 3
    assert not any(first.has_paper(column) for column in first.columns)


def test_a_model_of_ones_own_stands_alone(tmp_path):
    files = [write_score(tmp_path, "own", "dense", "cot", "TextVQA", 60.0)]
    files.append(write_score(tmp_path, "own", "interlace-25-ft", "cot", "TextVQA", 45.0))
    experiments = EXPERIMENTS | {"primary": "own", "ratios": [25]}
    models = {"own": MODELS["own"]}
    first = table_of(1, load_results(files), experiments, models)
    assert cells(first)["TextVQA", "own 25"].ours == pytest.approx(75)
    assert cells(first)["Overall", "own 25"].coverage == (1, 12)
    fifth = table_of(5, load_results(files), experiments, models)
    assert all(cell.paper is None for cell in cells(fifth).values())
    for table in (first, fifth):
        assert "/ –" not in render.to_markdown(table), (
            "no column for a paper that has no such model"
        )


# -- honesty --------------------------------------------------------------------------------------


def test_an_incomplete_average_is_marked_and_not_compared(tmp_path):
    files = [
        write_score(tmp_path, "big", variant, "cot", "TextVQA", score)
        for variant, score in (("dense", 80.0), ("interlace-25-ft", 60.0))
    ]
    table = table_of(5, load_results(files))
    cell = cells(table)["Overall", "interlace-25-ft"]
    assert (cell.ours, cell.paper, cell.difference, cell.coverage) == (60.0, 72.7, None, (1, 12))
    assert "60.0 [1/12] / 72.7 / –" in render.to_markdown(table)
    assert "1 of 12 benchmarks" in render.to_csv(table)
    assert any("[n/m]" in note for note in table.notes)


def test_partial_scores_carry_a_dagger_into_their_averages(tmp_path):
    files = [
        write_score(tmp_path, "big", "dense", "cot", name, 80.0, partial=name == "POPE")
        for name in PAPER.names
    ]
    found = cells(table_of(6, load_results(files)))
    assert found["POPE", "cot dense"].partial
    assert found["Overall", "cot dense"].partial
    assert not found["AI2D", "cot dense"].partial
    text = render.to_latex(table_of(6, load_results(files)))
    assert r"80.0$^{\dagger}$" in text


@pytest.mark.parametrize("number", range(1, 7))
def test_a_stand_in_says_so_in_every_format(papers_own, number, tmp_path):
    standin = table_of(number, papers_own, standin=STANDIN)
    models = {key: {**model, "label": key} for key, model in MODELS.items()}
    real = table_of(number, papers_own, models=models)
    for write in (render.to_csv, render.to_markdown, render.to_latex, render.to_html):
        assert "stand-in" not in write(real)
        assert "stand-in" in write(standin)
    title, *_ = render.to_markdown(standin).splitlines()
    assert "stand-in" in title
    assert "stand-in models" in render.notes(standin)[0]
    rows = list(csv.DictReader(io.StringIO(render.to_csv(standin))))
    assert all(row["note"].startswith("stand-in: models") for row in rows if row["ours"])


def test_fixture_files_make_a_stand_in_by_themselves(tmp_path):
    file = write_score(tmp_path, "big", "dense", "cot", "AI2D", 80.0, fixture=True)
    grader = {"kind": "openai", "model": "demo-rules-grader", "ungraded": 2}
    graded = write_score(tmp_path, "big", "dense", "cot", "MIABench", 80.0, grader=grader)
    table = table_of(6, load_results([file, graded]))
    assert table.standin == ("benchmarks that are not the official files", "rule-based grader")
    assert "2 answers were not graded." in table.notes
    known = table_of(6, load_results([file]), standin=["stand-in benchmarks"])
    assert known.standin == ("stand-in benchmarks",)


def test_a_dense_score_of_zero_is_named(tmp_path):
    files = [write_score(tmp_path, "big", "dense", "cot", "AI2D", 0.0)]
    files.append(write_score(tmp_path, "big", "interlace-25-ft", "cot", "AI2D", 3.0))
    table = table_of(1, load_results(files))
    assert cells(table)["AI2D", "big 25"].ours is None
    assert any("Dense scores 0: AI2D" in note for note in table.notes)


# -- formats --------------------------------------------------------------------------------------


def test_csv_holds_every_cell_with_interval(papers_own):
    table = table_of(5, papers_own)
    rows = list(csv.DictReader(io.StringIO(render.to_csv(table))))
    assert len(rows) == len(table.rows) * len(table.columns)
    row = next(r for r in rows if (r["row"], r["column"]) == ("AI2D", "INTERLACE"))
    assert (row["ours"], row["ours_low"], row["ours_high"]) == ("72.3", "67.3", "77.3")
    assert (row["paper"], row["difference"], row["row_group"]) == ("72.3", "0", "Text/Chart")
    second = list(csv.DictReader(io.StringIO(render.to_csv(table_of(2, papers_own)))))
    assert {r["fine_tuned"] for r in second if r["row"] == "SLEB-FT"} == {"yes"}


@pytest.mark.parametrize("number", range(1, 7))
def test_latex_rows_have_as_many_cells_as_columns(papers_own, number):
    """What breaks a compilation: unequal rows, unescaped characters, unbalanced groups."""
    text = render.to_latex(table_of(number, papers_own, standin=STANDIN))
    columns = re.search(r"\\begin\{tabular\}\{(.+)\}", text)[1]
    width = len(columns.replace(r"@{\hskip 7pt}", ""))
    body = text.split(r"\toprule")[1].split(r"\bottomrule")[0]
    rows = [line for line in body.splitlines() if line.endswith(r"\\")]
    assert len(rows) > 5
    for row in rows:
        spans = [int(n) for n in re.findall(r"\\multicolumn\{(\d+)\}", row)]
        num_cells = len(re.findall(r"(?<!\\)&", row)) + 1
        assert num_cells + sum(spans) - len(spans) == width
    assert text.count("{") - text.count(r"\{") == text.count("}") - text.count(r"\}")
    assert "\n\n" not in body
    without_comments = "\n".join(line for line in text.splitlines() if not line.startswith("%"))
    assert not re.search(r"(?<!\\)%(?!$)", without_comments, re.MULTILINE)
    assert not re.search(r"(?<!\\)[#_~]", without_comments)
    assert without_comments.isascii()


@pytest.mark.skipif(shutil.which("pdflatex") is None, reason="pdflatex is not installed")
def test_latex_compiles(papers_own, tmp_path):
    tables = [render.to_latex(table_of(n, papers_own, standin=STANDIN)) for n in range(1, 7)]
    head = "\\documentclass[twocolumn]{article}\n\\usepackage{booktabs,graphicx}\n"
    document = f"{head}\\begin{{document}}\n{''.join(tables)}\\end{{document}}\n"
    (tmp_path / "tables.tex").write_text(document, encoding="utf-8")
    command = ["pdflatex", "-interaction=nonstopmode", "-halt-on-error", "tables.tex"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout[-2000:]


def test_latex_escapes_what_it_would_read_as_commands():
    assert latex_escape("50% & a_b {−1} × †") == (r"50\% \& a\_b \{$-$1\} $\times$ $^{\dagger}$")


def test_markdown_and_html_rows_match_their_heads(papers_own):
    for number in range(1, 7):
        table = table_of(number, papers_own)
        lines = [x for x in render.to_markdown(table).splitlines() if x.startswith("|")]
        assert len({line.count("|") for line in lines}) == 1
        assert len(lines) == len(table.rows) + 2
        page = render.to_html(table)
        widths = [3 if table.has_paper(c) else 1 for c in table.columns]
        texts = 1 + any(row.group for row in table.rows) + len(table.attributes)
        for line in page.split("<tbody>")[1].split("</tbody>")[0].strip().splitlines():
            assert line.count("<td") == texts + sum(widths)
        for line in page.split("<thead>")[1].split("</thead>")[0].strip().splitlines():
            spans = sum(int(n) for n in re.findall(r'colspan="(\d+)"', line))
            assert spans + line.count("<th") - line.count("colspan") == texts + sum(widths)
        assert "http" not in page, "self-contained"


def test_signs_and_dashes():
    assert render.signed(-0.04, 1) == "0.0"
    assert render.signed(-1.26, 1) == "−1.3"
    assert render.signed(1.2, 2) == "+1.20"
    assert render.number(None, 1) == "–"


def test_labels_with_html_in_them_stay_text(papers_own):
    models = {**MODELS, "big": MODELS["big"] | {"label": "<b>8B</b>"}}
    page = render.to_html(table_of(1, papers_own, models=models))
    assert "<b>8B" not in page
    assert "&lt;b&gt;8B" in page


def test_build_table_writes_four_files(tmp_path):
    scores, timings = write_paper_as_results(tmp_path / "results")
    stem = tmp_path / "tables" / "table2"
    settings = {"models": MODELS, "experiments": EXPERIMENTS, "standin": STANDIN, "stem": stem}
    build_table(2, evaluation_files=scores, ttft_files=timings, **settings)
    names = sorted(path.name for path in stem.parent.iterdir())
    assert names == ["table2.csv", "table2.html", "table2.md", "table2.tex"]


# -- bad input ------------------------------------------------------------------------------------


def test_bad_results_are_refused_by_name(tmp_path):
    good = write_score(tmp_path / "a", "big", "dense", "cot", "AI2D", 80.0)
    twin = write_score(tmp_path / "b", "big", "dense", "cot", "AI2D", 81.0)
    with pytest.raises(InputError, match=r"b/big/.*the same result as .*a/big/"):
        load_results([good, twin])
    for changes, text in (
        ({"benchmark": "MMMU"}, "'MMMU' is in none of the paper's tables"),
        ({"mode": "long"}, "mode 'long'"),
        ({"score": None}, "score is None, not a number"),
    ):
        bad = write_score(tmp_path / "c", "big", "dense", "cot", "AI2D", 80.0, **changes)
        with pytest.raises(InputError, match=text) as caught:
            load_results([bad])
        assert str(bad) in str(caught.value)
    write_json(bad, {"model": "big"})
    with pytest.raises(InputError, match="no key 'variant'"):
        load_results([bad])
    with pytest.raises(InputError, match="model 'big': not in the config"):
        table_of(1, load_results([good]), models={"own": MODELS["own"]}, experiments=EXPERIMENTS)
    with pytest.raises(InputError, match="1 to 6"):
        table_of(7, Results())


@pytest.mark.parametrize(
    ("name", "variant", "label"),
    [
        ("dense", Variant("dense", None, False), "Dense"),
        ("dense-ft", Variant("dense", None, True), "Dense-FT"),
        ("wanda_2_4", Variant("wanda_2_4", None, False), "Wanda 2:4"),
        ("sleb-25", Variant("sleb", 25.0, False), "SLEB"),
        ("sleb-25-ft", Variant("sleb", 25.0, True), "SLEB-FT"),
        ("interlace_oa-25-ft", Variant("interlace_oa", 25.0, True), "INTERLACE-OA"),
        (
            "shortened_llama-25",
            Variant("shortened_llama", 25.0, False),
            "Shortened LLaMA (not tuned)",
        ),
        ("llm_streamline-25-ft", Variant("llm_streamline", 25.0, True), "LLM-Streamline"),
        ("interlace-12.5", Variant("interlace", 12.5, False), "INTERLACE (not tuned)"),
    ],
)
def test_variant_ids_and_labels(name, variant, label):
    assert parse_variant(name) == variant
    assert variant.id == name
    assert variant.label == label


def test_labels_are_the_registrys_and_stand_in_the_papers_order():
    assert set(LABELS) == {*registry.METHODS, *registry.TWO_FOUR}
    papers = ["Dense", "Wanda 2:4", "Magnitude 2:4", "SLEB", "Consecutive", "Random"]
    papers += ["INTERLACE-OA", "INTERLACE-TN", "INTERLACE"]
    assert list(LABELS.values())[: len(papers)] == papers
    assert Variant("toy", 25.0, True).order > Variant("shortened_llama", 25.0, True).order


def test_a_variant_id_that_is_none_is_refused():
    with pytest.raises(InputError, match="'Interlace 25'"):
        parse_variant("Interlace 25")


# -- samples --------------------------------------------------------------------------------------


def test_samples_table(tmp_path):
    subset = {"rows": 100, "target": 10, "drawn": 12, "kept": 10, "calibration": 1}
    rejected = {"too many images": 2, "image does not decode": 0}
    counts = {**subset, "rejected": rejected}
    body = {"subsets": {"a(b)+": counts}, "total": counts, "rule": "uniform"}
    write_json(tmp_path / "samples.json", body)
    build_samples_table(tmp_path / "samples.json", tmp_path / "t", STANDIN)
    rows = list(csv.DictReader((tmp_path / "t.csv").open(encoding="utf-8")))
    assert [row["subset"] for row in rows] == ["a(b)+", "all subsets"]
    assert rows[0]["rejected: too many images"] == "2"
    assert "rejected: image does not decode" not in rows[0], "only reasons that occur"
    assert rows[0]["note"].startswith("stand-in")
    for suffix in (".md", ".html"):
        text = (tmp_path / f"t{suffix}").read_text(encoding="utf-8")
        assert "stand-in" in text
        assert "a(b)+" in text
    write_json(tmp_path / "empty.json", {"subsets": {}})
    with pytest.raises(InputError, match=r"empty\.json"):
        build_samples_table(tmp_path / "empty.json", tmp_path / "t", [])
