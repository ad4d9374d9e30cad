"""Time to first token: dense and pruned in turns on the same samples of a benchmark.

From the moment the processor's outputs lie on the device, synchronised, to the first token's id on
the host: vision tower, projector, decoder prefill, logits of the last position, argmax.
"""

import importlib
from typing import Any

_PLACES = {
    "check_sanity": "sanity",
    "first_token": "clock",
    "measure_ttft": "run",
}
__all__ = list(_PLACES)


def __getattr__(name: str) -> Any:
    """Import what is asked for only then: the tables' environment, which checks, has no torch."""
    if name not in _PLACES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_PLACES[name]}"), name)
