"""A plan as a page that a person reads: roles over depth, the order taken, scores, warnings."""

from typing import TYPE_CHECKING, Any

from interlace.selection.registry import METHODS

if TYPE_CHECKING:
    from interlace.selection.plan import LayerPlan

SYMBOLS = {"drop": "x", "tune": "T", "anchor": "a", "freeze": "."}


def plan_sheet(plan: "LayerPlan") -> str:
    """Return the Markdown sheet of `plan`."""
    roles = plan.roles()
    ratio = "" if plan.ratio is None else f" at {plan.ratio:g} %"
    known = METHODS.get(plan.method)
    lines = [
        f"# Plan: {known.label if known else plan.method}{ratio}, {plan.model or 'unnamed model'}",
        "",
        f"- method `{plan.method}`, reading `{plan.reading}`, seed {plan.seed}",
        f"- {plan.num_dropped} of {plan.num_layers} layers dropped: {_list(plan.drop)}",
        f"- {len(plan.tune)} tuned: {_list(plan.tune)}",
        f"- {len(plan.freeze)} frozen, {_anchors(roles)}protected: {_list(plan.protect)}",
        f"- how: {plan.how_reached}",
        f"- scores: {_calibration(plan)}",
        *(f"- **warning**: {warning}" for warning in plan.warnings),
        "",
        "Depth, layer 0 first (x dropped, T tuned, a anchor, . frozen):",
        "",
        f"    {' '.join(_strip(roles, 10))}",
        "",
        *_windows(plan),
        *_order(plan),
        *_layers(plan, roles),
    ]
    return "\n".join(lines) + "\n"


def _windows(plan: "LayerPlan") -> list[str]:
    """List the windows taken, then those of a higher score than the last of them that were not."""
    if not plan.triplets:
        return []
    lines = ["## Windows in the order taken", ""]
    lines += _header(("", "layers", "score", "rank", "dropped", "tuned", "anchor"))
    ranks = {m["size"]: _ranks(m["values"]) for m in plan.measures}
    for number, entry in enumerate(plan.triplets, 1):
        rank = ranks.get(entry["size"], {}).get(entry["start"], "–")
        anchor = "–" if entry["anchor"] is None else entry["anchor"]
        span = _span(entry["start"], entry["size"])
        lines.append(
            f"| {number} | {span} | {entry['score']:.6f} | {rank} | {entry['drop']} "
            f"| {entry['tune']} | {anchor} |"
        )
    return [*lines, "", *_passed_over(plan)]


def _passed_over(plan: "LayerPlan") -> list[str]:
    """List the triplets that score higher than the lowest one taken and were not taken."""
    taken = {e["start"]: e["score"] for e in plan.triplets if e["size"] == 3}
    measure = next((m for m in plan.measures if m["size"] == 3), None)
    if measure is None or not taken:
        return []
    by_layer = {
        layer: number
        for number, entry in enumerate(plan.triplets, 1)
        for layer in range(entry["start"], entry["start"] + entry["size"])
    }
    rows = []
    for start, rank in _ranks(measure["values"]).items():
        score = measure["values"][start]
        if start not in taken and score > min(taken.values()):
            numbers = sorted({by_layer[i] for i in range(start, start + 3) if i in by_layer})
            shares = ", ".join(map(str, numbers)) or "none"
            rows.append(f"| {rank} | {_span(start, 3)} | {score:.6f} | {shares} |")
    if not rows:
        return []
    lines = ["Triplets of a higher score than the lowest taken, passed over:", ""]
    return [*lines, *_header(("rank", "layers", "score", "shares layers with no.")), *rows, ""]


def _order(plan: "LayerPlan") -> list[str]:
    if plan.triplets or not plan.order:
        return []
    return [f"Dropped in the order taken: {_list(plan.order)}", ""]


def _layers(plan: "LayerPlan", roles: list[str]) -> list[str]:
    """Give every layer's role and each measure of the window that starts there, with its rank."""
    names = [f"{m['name']} (rank)" for m in plan.measures]
    lines = ["## Every layer", ""]
    if any(m["size"] > 1 for m in plan.measures):
        lines += ["A window of several layers stands in the row of its first.", ""]
    lines += _header(("layer", "role", *names))
    ranks = [_ranks(m["values"], highest=_high_is_taken(m)) for m in plan.measures]
    for layer, role in enumerate(roles):
        cells = [
            _cell(measure["values"], by_rank, layer)
            for measure, by_rank in zip(plan.measures, ranks, strict=True)
        ]
        role = "freeze, protected" if layer in plan.protect else role
        lines.append(" | ".join([f"| {layer}", role, *cells]) + " |")
    return lines


def _high_is_taken(measure: dict[str, Any]) -> bool:
    return "cosine similarity" in measure["unit"]


def _ranks(values: list[float | None], highest: bool = True) -> dict[int, int]:
    """Return start -> rank from 1 of the values that are there, in the order of rank."""
    sign = -1 if highest else 1
    known = {start: value for start, value in enumerate(values) if value is not None}
    ordered = sorted(known, key=lambda start: (sign * known[start], start))
    return {start: rank for rank, start in enumerate(ordered, 1)}


def _cell(values: list[float | None], ranks: dict[int, int], start: int) -> str:
    if start not in ranks:
        return "–"
    return f"{values[start]:.6f} ({ranks[start]})"


def _calibration(plan: "LayerPlan") -> str:
    if plan.calibration is None:
        return "none"
    about = plan.calibration
    subsets = "all subsets" if about["subsets"] is None else ", ".join(about["subsets"])
    names = about.get("imported_from")
    imported = f"; imported from the files of {', '.join(names)}" if names else ""
    return (
        f"{about['num_samples']} samples of {subsets}, {about['modality']} tokens, digest "
        f"`{plan.scores_digest}`; text: {about['text']}{imported}"
    )


def _anchors(roles: list[str]) -> str:
    count = roles.count("anchor")
    return f"{count} of them anchors, " if count else ""


def _header(names: tuple[str, ...]) -> list[str]:
    return [f"| {' | '.join(names)} |", "|" + "---|" * len(names)]


def _span(start: int, size: int) -> str:
    return f"{start}..{start + size - 1}"


def _strip(roles: list[str], width: int) -> list[str]:
    symbols = "".join(SYMBOLS[role] for role in roles)
    return [symbols[start : start + width] for start in range(0, len(symbols), width)]


def _list(layers: list[int]) -> str:
    return ", ".join(map(str, layers)) or "none"
