"""Saying that a result is a stand-in: one wording for tables and figures."""

from collections.abc import Sequence

WORD = "stand-in"


def title_mark(reasons: Sequence[str], title: str = "") -> str:
    """Return ` (stand-in)` for a title, or nothing where it is none or `title` says so already."""
    return f" ({WORD})" if reasons and WORD not in title else ""


def remark(reasons: Sequence[str]) -> str:
    """Return `stand-in: models, data`, or nothing."""
    things = (reason.replace(f"{WORD} ", "") for reason in reasons)
    return f"{WORD}: {', '.join(things)}" if reasons else ""


def sentence(reasons: Sequence[str]) -> str:
    """Return the sentence that says what stands in, or nothing."""
    if not reasons:
        return ""
    return (
        f"Every number of ours is a {WORD} and says nothing about the paper's models: "
        f"{', '.join(reasons)}."
    )
