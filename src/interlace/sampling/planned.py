"""What of a plan decides the files made from it, so that an unchanged part is not fetched again.

A plan is remade for reasons that change nothing, or one subset of many. Rules take its files as
`ancient` and these digests as parameters: what a subset's rows are drawn from, not when it was
written, nor by which commit. Loads nothing heavy.
"""

from pathlib import Path

from interlace.io import digest, read_json


def subset_digest(plan: str | Path, subset: str) -> str | None:
    """Return a digest of all that a plan.json says of one subset; None where it says nothing."""
    if not Path(plan).exists():  # the subset will be looked at again once there is a plan
        return None
    body = read_json(plan)
    entry = body["subsets"].get(subset)
    return None if entry is None else digest([body["address"], body["revision"], entry])


def plan_digest(plan: str | Path) -> str | None:
    """Return a digest of a whole plan.json but its provenance; None where there is no plan."""
    if not Path(plan).exists():
        return None
    return digest({key: value for key, value in read_json(plan).items() if key != "provenance"})
