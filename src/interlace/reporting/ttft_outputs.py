"""What the workflow's scripts call for TTFT: files in, table and figures out."""

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from interlace.reporting import render
from interlace.reporting.alike import check_alike
from interlace.reporting.paper import load_paper
from interlace.reporting.results import load_results
from interlace.reporting.timings import check_timings_alike


def build_ttft_table(
    files: Iterable[Path],
    stem: Path,
    *,
    models: Mapping[str, Any],
    standin: Sequence[str],
    intervals: bool = False,
    seed: int = 0,
) -> None:
    """Write the table of TTFT as `stem`.csv, .md, .tex and .html.

    `intervals`: whether all formats show them, not the CSV alone; `seed`: of their resamples.
    """
    from interlace.reporting.table_ttft import make_ttft_table

    results = load_results(files)
    table = make_ttft_table(results, load_paper(), models, standin, intervals=intervals, seed=seed)
    render.write_table(table, stem)


def build_ttft_figures(
    files: Iterable[Path],
    folder: Path,
    *,
    models: Mapping[str, Any],
    standin: Sequence[str],
    method: str = "interlace",
) -> None:
    """Write `ttft_speedup`, `ttft_breakdown` and `ttft_tokens` into `folder` from TTFT files.

    `method` is the one whose ratios are drawn.
    """
    from interlace.reporting.figure_ttft import draw_breakdown, draw_speedup
    from interlace.reporting.figure_ttft_tokens import draw_tokens
    from interlace.reporting.figures import write_figure

    results = load_results(files)
    check_timings_alike(results.timings)
    reasons = results.standin_reasons(standin)
    for name, draw in (
        ("ttft_speedup", draw_speedup),
        ("ttft_breakdown", draw_breakdown),
        ("ttft_tokens", draw_tokens),
    ):
        write_figure(draw(results, models, load_paper(), method, reasons), folder / name)


def build_ttft_accuracy(
    evaluation_files: Iterable[Path],
    ttft_files: Iterable[Path],
    stem: Path,
    *,
    model: str,
    label: str,
    standin: Sequence[str],
    seed: int = 0,
) -> None:
    """Write accuracy against TTFT, a point per variant of `model`, as `stem`.svg, .pdf and .png."""
    from interlace.reporting.figure_ttft_accuracy import draw_accuracy
    from interlace.reporting.figures import write_figure

    results = load_results([*evaluation_files, *ttft_files])
    check_alike(results)
    check_timings_alike(results.timings)
    reasons = results.standin_reasons(standin)
    write_figure(draw_accuracy(results, model, load_paper(), label, reasons, seed=seed), stem)
