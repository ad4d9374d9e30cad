"""Calibration samples that cannot be encoded: when what is left is no calibration set. No torch."""

from collections import Counter
from collections.abc import Sequence
from typing import Any

from interlace.errors import InputError

TOO_LONG = "dropped_too_long"
NO_VISION = "dropped_no_vision"  # a sample with images for a model that reads text only


def check_left_out(
    key: str, left_out: Sequence[dict[str, Any]], encoded: int, with_images: bool
) -> None:
    """Raise `InputError` where no sample is left, or no sample with images though there were some.

    `key` names the setting of the longest sequence, the way out where that is what left most of
    them out; `encoded` counts the samples that are left, `with_images` says whether one of them has
    images. An entry of `left_out` has `id`, `reason`, `detail` and whether it has `images`. A model
    that reads text only may lose all samples with images, as long as others are left.
    """
    pictured = [entry for entry in left_out if entry.get("images") and not _no_vision(entry)]
    if encoded and (with_images or not pictured):
        return
    lost = pictured if encoded else left_out
    what = "calibration samples with images" if encoded else "calibration samples"
    firsts = {entry["reason"]: entry for entry in reversed(lost)}
    reasons = Counter(entry["reason"] for entry in lost).most_common()
    told = "; ".join(
        f"{count} {reason}, first {firsts[reason]['id']}: {firsts[reason].get('detail', reason)}"
        for reason, count in reasons
    )
    # Images that a text-only model cannot read are no surprise; what befell the others is.
    most = next((reason for reason, _ in reasons if reason != NO_VISION), NO_VISION)
    if most == TOO_LONG:
        where, cure = key, "raise it"
    else:
        where = key.partition(".")[0]
        cure = (
            "draw samples of text, or choose a vision-language model"
            if most == NO_VISION
            else "check the model's processor and the samples"
        )
    raise InputError(f"{where}: none of {len(lost)} {what} can be encoded ({told}); {cure}")


def _no_vision(entry: dict[str, Any]) -> bool:
    return entry["reason"] == NO_VISION
