"""INTERLACE-OA: the triplets of INTERLACE, but the roles by position alone."""

from interlace.selection.method import Choice, Request
from interlace.selection.triplets import choose_triplets


def choose(request: Request) -> Choice:
    """Drop the first layer of each triplet, tune the second, keep the third.

    The released code has no fallback where greedy triplets run out: it drops fewer layers.
    """
    return choose_triplets(request, lambda start: (start, start + 1), fallback=False)
