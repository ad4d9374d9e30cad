"""From a percentage of decoder layers to their number."""

from fractions import Fraction

from interlace.errors import InputError


def num_dropped(ratio: float, num_layers: int) -> int:
    """Return K = floor(ratio L / 100); `InputError` unless 1 <= K <= L / 3."""
    count = int(Fraction(str(ratio)) * num_layers / 100)
    if count < 1 or 3 * count > num_layers:
        wrong = "drops none" if count < 1 else f"drops {count}, more than a third"
        raise InputError(
            f"experiments.ratios: {ratio:g} % {wrong} of {num_layers} layers; choose between "
            f"{100 / num_layers:.1f} and {100 / 3:.1f}"
        )
    return count
