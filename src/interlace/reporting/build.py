"""What the workflow's scripts call: files in, tables and figures out."""

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from interlace.errors import InputError
from interlace.io import read_json
from interlace.reporting import audit, render
from interlace.reporting.alike import check_alike
from interlace.reporting.paper import load_paper
from interlace.reporting.results import load_results
from interlace.reporting.samples import write_samples_table
from interlace.reporting.seeds import over_seeds
from interlace.reporting.tables import make_table


def build_table(
    number: int,
    *,
    evaluation_files: Iterable[Path],
    ttft_files: Iterable[Path],
    models: Mapping[str, Any],
    experiments: Mapping[str, Any],
    standin: Sequence[str],
    stem: Path,
    intervals: bool = False,
    seed: int = 0,
) -> None:
    """Write one of the paper's tables as `stem`.csv, .md, .tex and .html.

    `models`, `experiments`: those sections of the config; `standin`: why ours stand in, if they do.
    `intervals`: whether all formats show them, not the CSV alone; `seed`: of their resamples.
    """
    results = load_results([*evaluation_files, *ttft_files])
    table = make_table(
        number,
        results,
        load_paper(),
        models,
        experiments,
        standin,
        intervals=intervals,
        seed=seed,
    )
    render.write_table(table, stem)


def build_significance(
    tables: Sequence[int],
    *,
    evaluation_files: Iterable[Path],
    models: Mapping[str, Any],
    experiments: Mapping[str, Any],
    standin: Sequence[str],
    stem: Path,
    seed: int = 0,
) -> None:
    """Write whether the methods of `tables` (2, 3, 5) differ as `stem`.csv, .md, .tex and .html."""
    from interlace.reporting.significance import compare
    from interlace.reporting.significance_table import write_significance

    results = load_results(evaluation_files)
    comparisons = compare(tables, results, load_paper(), models, experiments, seed)
    remarks = over_seeds(results).remarks
    write_significance(comparisons, results.standin_reasons(standin), seed, stem, remarks)


def build_audit(stem: Path) -> None:
    """Recompute the paper's numbers from each other; write `stem`.md and `stem`.html."""
    audit.write_audit(load_paper(), stem)


def build_samples_table(samples: Path, stem: Path, standin: Sequence[str]) -> None:
    """Write the counts per subset of a samples.json as `stem`.csv, .md and .html."""
    write_samples_table(samples, stem, standin)


def build_contact_sheets(samples: Path, out: Path, *, seed: int, standin: Sequence[str]) -> None:
    """Write pages with a few samples of every subset as `out`/page01.png, ..."""
    from interlace.reporting.contact_sheet import write_contact_sheets

    write_contact_sheets(samples, out, seed, standin)


def build_figure2(plan: Path, stem: Path, *, standin: Sequence[str], label: str) -> None:
    """Write Figure 2, the roles of a plan over depth, as `stem`.svg, .pdf and .png."""
    from interlace.reporting.figure_plan import draw_plan
    from interlace.reporting.figures import write_figure
    from interlace.selection.plan import read_plan

    write_figure(draw_plan(read_plan(plan), label, standin), stem)


def build_figure3(files: Iterable[Path], stem: Path, *, standin: Sequence[str], label: str) -> None:
    """Write Figure 3, the change after fine-tuning Dense, from one model's evaluation files."""
    from interlace.reporting.figure_finetuning import draw_figure3
    from interlace.reporting.figures import write_figure

    results = load_results(files)
    check_alike(results)
    results = over_seeds(results)
    if len(results.models) != 1:
        found = ", ".join(sorted(results.models)) or "none"
        raise InputError(f"figure 3 is about one model; the evaluation files are of: {found}")
    (model,) = results.models
    reasons = results.standin_reasons(standin)
    write_figure(draw_figure3(results, model, load_paper(), label, reasons), stem)


def build_figure4(
    packs: Mapping[str, Sequence[Path]], stem: Path, *, standin: Sequence[str]
) -> None:
    """Write Figure 4, similarity over depth; `packs` maps a model's label to its pack files."""
    from interlace.reporting.figure_similarity import draw_figure4
    from interlace.reporting.figures import write_figure

    bodies = {label: [_pack(path) for path in paths] for label, paths in packs.items()}
    write_figure(draw_figure4(bodies, standin), stem)


def _pack(path: Path) -> dict[str, Any]:
    body = read_json(path)
    if not isinstance(body, dict) or not body.get("windows"):
        raise InputError(f"{path}: no windows in it; delete it and score again")
    return body
