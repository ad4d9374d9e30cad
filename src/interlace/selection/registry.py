"""The methods of choosing layers by name. A new one is a file in `methods` and a line here."""

from interlace.selection.method import Method
from interlace.selection.methods import (
    consecutive,
    dense,
    interlace,
    interlace_oa,
    interlace_tn,
    random,
    sleb,
)

METHODS = {
    "interlace": Method(interlace.choose, "INTERLACE", needs_scores=True),
    "interlace_oa": Method(interlace_oa.choose, "INTERLACE-OA", needs_scores=True),
    "interlace_tn": Method(interlace_tn.choose, "INTERLACE-TN", needs_scores=True),
    "consecutive": Method(consecutive.choose, "Consecutive", needs_scores=True),
    "random": Method(random.choose, "Random"),
    "sleb": Method(sleb.choose, "SLEB", needs_sleb=True),
    "dense": Method(dense.choose, "Dense", needs_ratio=False),
}
