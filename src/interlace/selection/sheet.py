"""A plan as a page that a person reads: roles over depth, the order taken, scores, warnings."""

from typing import TYPE_CHECKING

from interlace.selection.scores import ScoreTable

if TYPE_CHECKING:
    from interlace.selection.plan import LayerPlan

SYMBOLS = {"drop": "x", "tune": "T", "anchor": "a", "freeze": "."}


def plan_sheet(plan: "LayerPlan", scores: ScoreTable | None = None) -> str:
    """Return the Markdown sheet of `plan`; with `scores`, each layer's similarities beside it."""
    roles = layer_roles(plan)
    ratio = "" if plan.ratio is None else f" at {plan.ratio:g} %"
    lines = [
        f"# Plan: {plan.method}{ratio}, {plan.model or 'unnamed model'}",
        "",
        f"- {plan.num_dropped} of {plan.num_layers} layers dropped: {_list(plan.drop)}",
        f"- {len(plan.tune)} tuned: {_list(plan.tune)}",
        f"- {len(plan.freeze)} frozen",
        f"- how: {plan.how_reached}",
        f"- reading `{plan.reading}`, seed {plan.seed}, scores `{plan.scores_digest or 'none'}`",
        *(f"- **warning**: {warning}" for warning in plan.warnings),
        "",
        "Depth, layer 0 first (x dropped, T tuned, a anchor, . frozen):",
        "",
        f"    {' '.join(_strip(roles, 10))}",
        "",
    ]
    if plan.triplets:
        lines += ["## Windows in the order taken", ""]
        lines += ["| | layers | score | dropped | tuned | anchor |", "|---|---|---|---|---|---|"]
        for number, entry in enumerate(plan.triplets, 1):
            layers = f"{entry['start']}..{entry['start'] + entry['size'] - 1}"
            anchor = "–" if entry["anchor"] is None else entry["anchor"]
            lines.append(
                f"| {number} | {layers} | {entry['score']:.6f} | {entry['drop']} | {entry['tune']} "
                f"| {anchor} |"
            )
        lines.append("")
    lines += ["## Every layer", ""]
    lines += ["| layer | role | S layer | S triplet from here |", "|---|---|---|---|"]
    for layer, role in enumerate(roles):
        lines.append(
            f"| {layer} | {role} | {_score(scores, 1, layer)} | {_score(scores, 3, layer)} |"
        )
    return "\n".join(lines) + "\n"


def layer_roles(plan: "LayerPlan") -> list[str]:
    """Return `drop`, `tune`, `anchor` or `freeze` for every layer."""
    roles = ["freeze"] * plan.num_layers
    for entry in plan.triplets:
        if entry["anchor"] is not None:
            roles[entry["anchor"]] = "anchor"
    for layer in plan.drop:
        roles[layer] = "drop"
    for layer in plan.tune:
        roles[layer] = "tune"
    return roles


def _strip(roles: list[str], width: int) -> list[str]:
    symbols = "".join(SYMBOLS[role] for role in roles)
    return [symbols[start : start + width] for start in range(0, len(symbols), width)]


def _list(layers: list[int]) -> str:
    return ", ".join(map(str, layers)) or "none"


def _score(scores: ScoreTable | None, size: int, start: int) -> str:
    if scores is None or start >= len(scores.packs[size]):
        return "–"
    return f"{scores.packs[size][start]:.6f}"
