"""Dense-FT: drop nothing, tune the last quarter of the layers."""

from interlace.errors import InputError
from interlace.selection.method import Choice, Request

TUNED_PERCENT = 25


def choose(request: Request) -> Choice:
    """Tune the last floor(25 % L) layers that are not protected."""
    count = request.num_layers * TUNED_PERCENT // 100
    tune = request.free()[-count:] if count else []
    if not tune:
        raise InputError(f"dense: {TUNED_PERCENT} % of {request.num_layers} layers is none to tune")
    return Choice([], tune, f"nothing dropped; the last {TUNED_PERCENT} % of the layers tuned")
