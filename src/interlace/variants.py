"""Names of variants: `dense`, `interlace-25-ft`, `random-25-ft-s1`, and what they stand for."""

import re

from interlace.selection.registry import METHODS


def variant_id(method: str, ratio: int | None = None, *, tuned: bool = False) -> str:
    """Return the id of a variant: `dense`, `dense-ft`, `wanda_2_4`, `interlace-25-ft`, `sleb-25`."""
    return method + (f"-{ratio}" if ratio is not None else "") + ("-ft" if tuned else "")


def split_seed(name: str) -> tuple[str, int | None]:
    """Return (variant or plan, further seed or None) of `interlace-25-ft-s1` and the like."""
    match = re.fullmatch(r"(.*?)(?:-s(\d+))?", name)
    assert match is not None
    return match[1], None if match[2] is None else int(match[2])


def plan_id(variant: str) -> str:
    """Return the plan that a variant's checkpoint is made by; only random ones differ by seed."""
    name, seed = split_seed(variant)
    plan = name.removesuffix("-ft")
    return plan if seed is None or not _chosen_by_chance(plan) else f"{plan}-s{seed}"


def split_plan_id(plan: str) -> tuple[str, int | None]:
    """Return (method, ratio in percent or None) of a plan id."""
    method, _, ratio = split_seed(plan)[0].partition("-")
    return method, int(ratio) if ratio else None


def made_by_chance(variant: str) -> bool:
    """Whether a checkpoint differs by seed: fine-tuned, or its layers drawn at random."""
    name = split_seed(variant)[0]
    return name.endswith("-ft") or _chosen_by_chance(name)


def checkpoint_id(variant: str) -> str:
    """Return the variant whose checkpoint this one is evaluated with."""
    return variant if made_by_chance(variant) else split_seed(variant)[0]


def _chosen_by_chance(plan: str) -> bool:
    method = split_plan_id(plan)[0]
    return method in METHODS and METHODS[method].by_chance
