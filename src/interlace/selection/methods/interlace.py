"""INTERLACE: of each redundant triplet drop one layer, tune its neighbour, keep the third."""

from interlace.selection.method import Choice, Request
from interlace.selection.triplets import choose_triplets


def choose(request: Request) -> Choice:
    """Choose by Algorithm 1 of the paper: triplets by score, roles by the layers' own scores.

    Of the first two layers i, i+1 of a triplet drop the more similar one and tune the other. At a
    tie the paper drops i+1, the released code i.
    """
    assert request.scores is not None
    layer = request.scores.packs[1]

    def roles(start: int) -> tuple[int, int]:
        first, second = layer[start], layer[start + 1]
        drop_first = first > second or (first == second and request.reading == "released")
        return (start, start + 1) if drop_first else (start + 1, start)

    return choose_triplets(request, roles, fallback=True)
