"""The notes below a table: what its marks mean and how its numbers were measured."""

from interlace.reporting.layout import Table
from interlace.reporting.results import Results

MODE_LABELS = {"cot": "CoT", "limited": "Limited"}
PAPER_TOKENS = {"cot": 16384, "limited": 50}


def token_notes(results: Results) -> list[str]:
    """Say how many new tokens each mode allowed, ours and the paper's."""
    notes = []
    for mode, label in MODE_LABELS.items():
        limits = results.max_new_tokens(mode)
        if limits:
            ours = " or ".join(map(str, limits))
            notes.append(f"{label}: at most {ours} new tokens, in the paper {PAPER_TOKENS[mode]}.")
    return notes


def device_notes(results: Results) -> list[str]:
    """Say what TTFT was measured on, and on how many samples."""
    timings = [t for group in results.timings.values() for t in group.values()]
    devices = sorted({t.device for t in timings if t.device})
    counts = sorted({t.num_samples for t in timings if t.num_samples})
    if not devices:
        return []
    samples = (
        f", {'-'.join(dict.fromkeys((str(counts[0]), str(counts[-1]))))} samples per benchmark"
    )
    return [f"TTFT of ours: on {', '.join(devices)}{samples if counts else ''}."]


def kernel_notes(results: Results, model: str) -> list[str]:
    """Say what kernels a model's timed 2:4 variants ran on: zeros save time on some only."""
    timed = {
        (timing.kernels, timing.kernels_reason)
        for (key, variant), group in results.timings.items()
        if key == model and variant.endswith("_2_4")
        for timing in group.values()
        if timing.kernels
    }
    names = {"dense": "dense kernels, which gain nothing from zeros"}
    kernels = [
        f"{names.get(name, 'the semi-structured kernels of torch')} ({reason})"
        for name, reason in sorted(timed)
    ]
    return [f"TTFT of 2:4 variants: on {', '.join(kernels)}."] if kernels else []


def cell_notes(table: Table) -> list[str]:
    """Explain the marks that stand in a table's cells and count what is missing."""
    cells = [table.cell(row, column) for row in table.rows for column in table.columns]
    notes = []
    if any(cell.paper is not None for cell in cells):
        notes.append("Differences are ours − the paper's, taken before rounding.")
    if any(cell.partial for cell in cells):
        notes.append("† from part of a benchmark (evaluation.limit).")
    if any(cell.coverage for cell in cells):
        notes.append(
            "[n/m] averages n of the m benchmarks of the paper's average; not compared with it."
        )
    missing = sum(cell.ours is None for cell in cells)
    if missing:
        notes.append(f"– no result: {missing} of {len(cells)} cells of ours.")
    return notes
