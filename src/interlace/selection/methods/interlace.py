"""INTERLACE: of each redundant triplet drop one layer, tune its neighbour, keep the third."""

from interlace.selection.method import Choice, Request
from interlace.selection.triplets import choose_triplets, roles_by_score


def choose(request: Request) -> Choice:
    """Choose by Algorithm 1 of the paper: triplets by score, roles by the layers' own scores."""
    return choose_triplets(request, roles_by_score(request), fallback=True)
