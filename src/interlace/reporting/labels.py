"""What methods and variants are called in tables and figures, and in which order they stand."""

import re
from dataclasses import dataclass

from interlace.errors import InputError

METHODS = {
    "dense": "Dense",
    "wanda_2_4": "Wanda 2:4",
    "magnitude_2_4": "Magnitude 2:4",
    "sleb": "SLEB",
    "consecutive": "Consecutive",
    "random": "Random",
    "interlace_oa": "INTERLACE-OA",
    "interlace_tn": "INTERLACE-TN",
    "interlace": "INTERLACE",
    "shortgpt": "ShortGPT",
    "llm_streamline": "LLM-Streamline",
}
TUNING_NAMED = ("dense", "sleb")
"""Methods whose plain name means "not fine-tuned" in the paper; tuned, they are called `-FT`."""
_VARIANT = re.compile(
    r"(?P<method>[a-z][a-z0-9_]*)(?:-(?P<ratio>\d+(?:\.\d+)?))?(?P<tuned>-ft)?", re.ASCII
)


@dataclass(frozen=True)
class Variant:
    """A variant id taken apart: `interlace-25-ft` is interlace, 25 (percent), fine-tuned."""

    method: str
    ratio: float | None
    tuned: bool

    @property
    def id(self) -> str:
        """The variant id, as in the names of folders."""
        ratio = "" if self.ratio is None else f"-{self.ratio:g}"
        return f"{self.method}{ratio}{'-ft' if self.tuned else ''}"

    @property
    def label(self) -> str:
        """The name in a table whose ratio is stated elsewhere."""
        name = method_label(self.method)
        if self.method in TUNING_NAMED:
            return f"{name}-FT" if self.tuned else name
        if self.ratio is None:
            return f"{name} (tuned)" if self.tuned else name
        return name if self.tuned else f"{name} (not tuned)"

    @property
    def order(self) -> tuple[int, str]:
        """Sort key: the order of `METHODS`, unknown methods last."""
        known = list(METHODS)
        position = known.index(self.method) if self.method in METHODS else len(known)
        return position, self.id


def parse_variant(name: str) -> Variant:
    """Take a variant id apart; InputError if it is none."""
    match = _VARIANT.fullmatch(name)
    if match is None:
        raise InputError(
            f"variant {name!r}: expected <method>, <method>-<ratio> or either with -ft"
        )
    ratio = match["ratio"]
    return Variant(match["method"], None if ratio is None else float(ratio), bool(match["tuned"]))


def method_label(method: str) -> str:
    """Return the paper's name of a method, or a readable form of an unknown one."""
    return METHODS.get(method, method.replace("_", " "))


def model_label(key: str, models: dict[str, dict]) -> str:
    """Return the label of a model from the config's `models` section; InputError if unknown."""
    if key not in models:
        raise InputError(f"model {key!r}: not in the config's models ({', '.join(models)})")
    return models[key].get("label") or key
