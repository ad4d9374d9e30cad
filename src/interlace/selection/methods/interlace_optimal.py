"""INTERLACE with an exact choice: the disjoint triplets of the highest total similarity."""

from interlace.errors import InputError
from interlace.selection.method import Choice, Request
from interlace.selection.triplets import (
    by_score,
    choice_of,
    entry,
    impossible,
    roles_by_score,
    take_exactly,
)


def choose(request: Request) -> Choice:
    """Take the K disjoint triplets with the highest sum of scores, by dynamic programming.

    The exact counterpart of Algorithm 1, which is greedy: K triplets are found whenever K disjoint
    ones exist, and their total is never below that of K triplets of the greedy walk. Roles as in
    INTERLACE. Not of the paper.
    """
    windows = request.windows(3)
    starts = take_exactly(windows, 3, request.num_dropped)
    if starts is None:
        raise InputError(impossible(request))
    roles = roles_by_score(request)
    taken = by_score({start: windows[start] for start in starts})
    triplets = [entry(start, 3, windows[start], roles(start)) for start in taken]
    how = (
        f"the {len(starts)} disjoint triplets of {len(windows)} with the highest total similarity, "
        "by dynamic programming; listed by descending score"
    )
    return choice_of(request, triplets, how)
