"""What vlmeval's evaluate() reads out of a grader's reply: a grade, an option, yes or no."""

import itertools
import re
from fractions import Fraction
from typing import Any

from interlace.evaluation.scores import total_grade

_SCORE = re.compile(
    r"(?:score of component (\d+)|total score)[*_\s]*:[*_\s]*(\d+(?:\.\d+)?)\s*/\s*(\d+(?:\.\d+)?)",
    re.IGNORECASE,
)
_SEPARATOR = re.compile(r"[\s,;.*_-]*(?:and\s+)?(?:the\s+)?[*_]*", re.IGNORECASE)


def grade_of(raw: Any, components: int, component_type: Any) -> float | None:
    """Return the total (0-1) of a grader's reply, None if it cannot be read.

    `components`: how many scores have to come before the total. vlmeval reads it, out of what
    `grade_told` returns.
    """
    return _kit_grade(grade_told(raw, components, component_type), components, component_type)


def grade_told(raw: Any, components: int, component_type: Any) -> str:
    """Return a reply as vlmeval can read it: as it is if it can, else its scores in the form asked for.

    Only how they are written changes: with decimals (2.5/6 becomes 5/12), in capitals, set in bold,
    or one a line. They have to come in their order, with nothing in between. A reply without them
    stays as it is.
    """
    raw = str(raw)
    if _kit_grade(raw, components, component_type) is not None:
        return raw
    found = list(_SCORE.finditer(raw))[: components + 1]
    names = [(match[1] or "total").lower() for match in found]
    between = [raw[a.end() : b.start()] for a, b in itertools.pairwise(found)]
    if names != [*map(str, range(1, components + 1)), "total"] or not all(
        _SEPARATOR.fullmatch(text) for text in between
    ):
        return raw
    if any(float(match[3]) == 0 for match in found):
        return raw
    shares = [Fraction(match[2]) / Fraction(match[3]) for match in found]
    written = [f"{share.numerator}/{share.denominator}" for share in shares]
    scores = [f"score of component {i}: {text}, " for i, text in enumerate(written[:-1], 1)]
    return f"{''.join(scores)}total score: {written[-1]}. {raw}"


def _kit_grade(raw: Any, components: int, component_type: Any) -> float | None:
    total = total_grade(raw, component_type)
    scores = str(raw).split(".")[0].count(",")
    good = total is not None and 0 <= total <= 1 and "total score" in str(raw)
    return total if good and components == scores else None


def option_of(row: Any, reply: str) -> str | None:
    """Return the option that vlmeval reads out of a reply (Z: none of them), None if it cannot."""
    from vlmeval.dataset.utils.multiple_choice import build_choices, can_infer

    return can_infer(reply, build_choices(row)) or None


def yes_no_of(reply: str) -> str | None:
    """Return Yes, No or Unknown as the prompt allows them, None if vlmeval can read neither."""
    from vlmeval.dataset.utils.yorn import YOrN_Extraction

    found = YOrN_Extraction(reply)
    return found if found != "Unknown" or "unknown" in reply.lower() else None
