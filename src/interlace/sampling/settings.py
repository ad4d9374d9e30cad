"""The `data` section of a configuration: what decides a sample, apart from how it is fetched.

Loads nothing heavy.
"""

from collections.abc import Mapping
from typing import Any

from interlace.errors import InputError

# Here and not from where they are made, since the rules read this file and want no pyarrow.
FORMATS = ("finevision", "chartqa", "textvqa", "scienceqa")
UNITS = ("row", "row_group", "first")
LONG_CONVERSATIONS = ("reject", "cut")

# As in workflow/schemas/config.schema.yaml, for callers that have no configuration.
DEFAULTS: dict[str, Any] = {
    "fraction": 0.01,
    "min_per_subset": 1,
    "unit": "row_group",
    "subsets": None,
    "format": "finevision",
    "max_images": 3,
    "max_turns": 5,
    "long_conversations": "reject",
    "calibration_fraction": 0.1,
    "calibration_held_out": False,
}
# How, not what: the sample is the same for any value.
MANNER: dict[str, Any] = {"workers": 8, "retries": 8}
_DRAW = ("fraction", "min_per_subset", "unit", "subsets", "format")
_CONTENT = ("max_images", "max_turns", "long_conversations")


def complete(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Return `settings` with defaults for what is left out; raises `InputError` for a bad value."""
    known = DEFAULTS | MANNER
    full = known | {key: settings[key] for key in known if key in settings}
    for key in ("fraction", "calibration_fraction"):
        if not 0 < float(full[key]) <= 1:
            raise InputError(f"data.{key}: {full[key]} is not above 0 and at most 1")
    for key, least in (
        ("min_per_subset", 0), ("max_images", 0), ("max_turns", 1), ("workers", 1), ("retries", 0),
    ):  # fmt: skip
        if int(full[key]) < least:
            raise InputError(f"data.{key}: {full[key]} is less than {least}")
    for key, possible in (
        ("unit", UNITS), ("format", FORMATS), ("long_conversations", LONG_CONVERSATIONS),
    ):  # fmt: skip
        if full[key] not in possible:
            raise InputError(f"data.{key}: {full[key]} is none of {', '.join(possible)}")
    return full


def plan_settings(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Return the settings that decide which rows are drawn, and what of them is expected to be kept."""
    return _only(settings, _DRAW + _CONTENT)


def subset_settings(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Return the settings that decide the files of a subset; which subsets there are is no matter."""
    return _only(settings, tuple(key for key in _DRAW + _CONTENT if key != "subsets"))


def sample_settings(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Return every setting that a byte of the sample depends on."""
    return _only(settings, tuple(DEFAULTS))


def _only(settings: Mapping[str, Any], keys: tuple[str, ...]) -> dict[str, Any]:
    return {key: settings[key] for key in keys}
