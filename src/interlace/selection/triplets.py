"""Choosing disjoint windows: greedily by score, and exactly where greedy runs out."""

from collections.abc import Callable, Iterable, Mapping
from typing import Any

from interlace.errors import InputError
from interlace.selection.method import Choice, Request, measure

Roles = Callable[[int], tuple[int, int]]


def take_greedily(
    windows: Mapping[int, float], size: int, count: int, taken: Iterable[int] = ()
) -> list[int]:
    """Return at most `count` starts by descending score, sharing no layer with each other.

    `taken` are layers that are assigned already. Equal scores: the lower start first.
    """
    assigned = set(taken)
    starts: list[int] = []
    for start in by_score(windows):
        if len(starts) == count:
            break
        if assigned.isdisjoint(range(start, start + size)):
            starts.append(start)
            assigned.update(range(start, start + size))
    return starts


def take_exactly(
    windows: Mapping[int, float], size: int, count: int, prefer: Iterable[int] = ()
) -> list[int] | None:
    """Return `count` disjoint starts, ascending; None if no such choice exists.

    Of all choices the one with most starts of `prefer`, and among those the one with the highest
    sum of scores (equal sums: the one found first from the left). Dynamic programming over the
    layers, O(layers x count).
    """
    wanted = set(prefer)
    end = max(windows, default=0) + size
    # best[i][c]: (preferred, total, starts) of c windows within layers 0..i-1; None: impossible.
    best: list[list[tuple[int, float, tuple[int, ...]] | None]] = [
        [(0, 0.0, ())] + [None] * count for _ in range(end + 1)
    ]
    for position in range(1, end + 1):
        start = position - size
        for chosen in range(1, count + 1):
            options = [best[position - 1][chosen]]
            before = best[start][chosen - 1] if start in windows else None
            if before is not None:
                options.append(
                    (before[0] + (start in wanted), before[1] + windows[start], (*before[2], start))
                )
            possible = [option for option in options if option is not None]
            best[position][chosen] = max(possible, key=lambda o: o[:2], default=None)
    answer = best[end][count]
    return None if answer is None else list(answer[2])


def by_score(windows: Mapping[int, float]) -> list[int]:
    """Return the starts by descending score; equal scores: the lower start first."""
    return sorted(windows, key=lambda start: (-windows[start], start))


def roles_by_score(request: Request) -> Roles:
    """Return INTERLACE's roles: of a window's first two layers drop the more similar, tune the other.

    At a tie of S(i) and S(i+1) the paper drops i+1, the released code i.
    """
    layer = request.windows(1)

    def roles(start: int) -> tuple[int, int]:
        first, second = layer[start], layer[start + 1]
        drop_first = first > second or (first == second and request.reading == "released")
        return (start, start + 1) if drop_first else (start + 1, start)

    return roles


def choose_triplets(request: Request, roles: Roles, fallback: bool) -> Choice:
    """Return the triplets of Algorithm 1, with `roles(start)` = (drop, tune) of the first two.

    Triplets are walked by descending score and taken if they share no layer with an earlier one,
    until `num_dropped` are; the third layer of each is the frozen anchor. Where greedy runs out,
    reading `paper` chooses `num_dropped` disjoint triplets anew, keeping as many of greedy's as
    possible and then with the highest total; reading `released` goes on with pack-2 pairs, one
    dropped and the other tuned, or (`fallback` False) stops short with a warning. Up to a quarter
    of the layers pairs always suffice: m triplets leave m + 1 gaps of at most two layers.
    """
    count, reading = request.num_dropped, request.reading
    windows = request.windows(3)
    starts = take_greedily(windows, 3, count)
    greedy = len(starts)
    how = f"greedy over {len(windows)} triplets by descending score: {greedy} of {count}"
    warnings: list[str] = []
    pairs: dict[int, float] = {}
    pair_starts: list[int] = []
    if greedy < count and reading == "paper":
        exact = take_exactly(windows, 3, count, prefer=starts)
        if exact is None:
            raise InputError(impossible(request))
        kept = [start for start in starts if start in exact]
        added = sorted(set(exact) - set(kept), key=lambda start: (-windows[start], start))
        starts = kept + added
        how += (
            f"; completed by the exact choice of {count} disjoint triplets that keeps most of "
            f"greedy's ({len(kept)} of {greedy}) and then has the highest total"
        )
    elif greedy < count and fallback:
        taken = {layer for start in starts for layer in range(start, start + 3)}
        pairs = request.windows(2)
        pair_starts = take_greedily(pairs, 2, count - greedy, taken)
        how += f"; then {len(pair_starts)} pack-2 pairs, one dropped and one tuned, no anchor"
        if greedy + len(pair_starts) < count:
            raise InputError(
                f"experiments.ratios: the released rule finds {greedy} triplets and "
                f"{len(pair_starts)} pairs for {count} layers to drop; set plan.reading: paper, "
                "protect fewer layers or lower the ratio"
            )
    elif greedy < count:
        warnings.append(
            f"only {greedy} of {count} layers are dropped: greedy triplets ran out and the "
            "released code has no fallback here; plan.reading: paper completes them"
        )
    triplets = [entry(start, 3, windows[start], roles(start)) for start in starts]
    triplets += [entry(start, 2, pairs[start], roles(start)) for start in pair_starts]
    return choice_of(request, triplets, how, warnings)


def choice_of(
    request: Request, triplets: list[dict[str, Any]], how: str, warnings: list[str] | None = None
) -> Choice:
    """Return the choice that `triplets`, windows in the order taken, make up."""
    layers = request.num_layers
    measures = [
        measure("layer", request.windows(1), layers),
        measure("triplet", request.windows(3), layers, 3),
    ]
    if any(window["size"] == 2 for window in triplets):
        measures.insert(1, measure("pair", request.windows(2), layers, 2))
    drop = [window["drop"] for window in triplets]
    return Choice(
        drop=drop,
        tune=[window["tune"] for window in triplets],
        how_reached=how,
        triplets=triplets,
        order=drop,
        measures=measures,
        warnings=warnings or [],
    )


def entry(start: int, size: int, score: float, roles: tuple[int, int]) -> dict[str, Any]:
    """Return a window as plans hold it; a window of three has its last layer as the anchor."""
    drop, tune = roles
    anchor = start + 2 if size == 3 else None
    return {
        "start": start,
        "size": size,
        "score": score,
        "drop": drop,
        "tune": tune,
        "anchor": anchor,
    }


def impossible(request: Request) -> str:
    """Say that no choice of enough disjoint triplets exists, and the way out."""
    count, layers = request.num_dropped, request.num_layers
    if request.protect:
        return (
            f"plan.protect: {sorted(request.protect)} leaves no {count} disjoint triplets "
            f"in {layers} layers; protect fewer layers or lower experiments.ratios"
        )
    return (
        f"experiments.ratios: {layers} layers have no {count} disjoint triplets that plan.reading "
        f"`{request.reading}` considers; lower the ratio"
    )
