"""The methods of choosing layers by name. A new one is a file in `methods` and a line here.

The order is that of rows and columns in tables, after Dense and 2:4 sparsity.
"""

from interlace.selection.method import Method
from interlace.selection.methods import (
    consecutive,
    dense,
    interlace,
    interlace_oa,
    interlace_optimal,
    interlace_tn,
    llm_streamline,
    random,
    shortened_llama,
    shortgpt,
    sleb,
)

METHODS = {
    "dense": Method(dense.choose, "Dense", needs_ratio=False, suffix_ft=True),
    "sleb": Method(sleb.choose, "SLEB", needs_sleb=True, suffix_ft=True),
    "consecutive": Method(consecutive.choose, "Consecutive", needs_scores=True),
    "random": Method(random.choose, "Random", by_chance=True),
    "interlace_oa": Method(interlace_oa.choose, "INTERLACE-OA", needs_scores=True),
    "interlace_tn": Method(interlace_tn.choose, "INTERLACE-TN", needs_scores=True),
    "interlace": Method(interlace.choose, "INTERLACE", needs_scores=True),
    "interlace_optimal": Method(interlace_optimal.choose, "INTERLACE-optimal", needs_scores=True),
    "shortgpt": Method(shortgpt.choose, "ShortGPT", needs_scores=True),
    "llm_streamline": Method(
        llm_streamline.choose,
        "LLM-Streamline",
        needs_scores=True,
        needs_window=llm_streamline.block_size,
    ),
    "shortened_llama": Method(shortened_llama.choose, "Shortened LLaMA", needs_losses=True),
}
PRUNERS = tuple(name for name, method in METHODS.items() if method.needs_ratio)
"""Methods that drop layers."""
TWO_FOUR = {"wanda_2_4": "Wanda 2:4", "magnitude_2_4": "Magnitude 2:4"}
"""Labels of what sparsifies weights instead of dropping layers."""
