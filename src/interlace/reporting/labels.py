"""What methods and variants are called in tables and figures, and in which order they stand."""

import re
from dataclasses import dataclass

from interlace.errors import InputError
from interlace.selection import registry

LABELS = {
    "dense": registry.METHODS["dense"].label,
    **registry.TWO_FOUR,
    **{name: method.label for name, method in registry.METHODS.items() if name != "dense"},
}
"""Names of methods in the order of tables."""
MODE_LABELS = {"cot": "CoT", "limited": "Limited"}
"""Names of modes in the order of tables."""
_VARIANT = re.compile(
    r"(?P<method>[a-z][a-z0-9_]*)(?:-(?P<ratio>\d+(?:\.\d+)?))?(?P<tuned>-ft)?(?:-s(?P<seed>\d+))?",
    re.ASCII,
)


@dataclass(frozen=True)
class Variant:
    """A variant id taken apart: `interlace-25-ft` is interlace, 25 (percent), fine-tuned.

    `seed` is a further one (`interlace-25-ft-s1`); None: the run's own.
    """

    method: str
    ratio: float | None
    tuned: bool
    seed: int | None = None

    @property
    def id(self) -> str:
        """The variant id, as in the names of folders."""
        ratio = "" if self.ratio is None else f"-{self.ratio:g}"
        seed = "" if self.seed is None else f"-s{self.seed}"
        return f"{self.method}{ratio}{'-ft' if self.tuned else ''}{seed}"

    @property
    def label(self) -> str:
        """The name in a table whose ratio is stated elsewhere."""
        return f"{self._name}{self._seed}"

    @property
    def full_label(self) -> str:
        """The name with the share of dropped layers, where there is nothing else to tell it."""
        ratio = "" if self.ratio is None else f" {self.ratio:g} %"
        return f"{self._name}{ratio}{self._seed}"

    @property
    def _seed(self) -> str:
        return "" if self.seed is None else f", seed {self.seed}"

    @property
    def _name(self) -> str:
        name = method_label(self.method)
        entry = registry.METHODS.get(self.method)
        if entry is not None and entry.suffix_ft:
            return f"{name}-FT" if self.tuned else name
        if self.ratio is None:
            return f"{name} (tuned)" if self.tuned else name
        return name if self.tuned else f"{name} (not tuned)"

    @property
    def order(self) -> tuple[int, str]:
        """Sort key: the order of `LABELS`, unknown methods last."""
        known = list(LABELS)
        position = known.index(self.method) if self.method in LABELS else len(known)
        return position, self.id


def parse_variant(name: str) -> Variant:
    """Take a variant id apart; InputError if it is none."""
    match = _VARIANT.fullmatch(name)
    if match is None:
        raise InputError(
            f"variant {name!r}: expected <method> or <method>-<ratio>, then -ft, then -s<seed>, "
            "where they apply"
        )
    ratio, seed = match["ratio"], match["seed"]
    return Variant(
        match["method"],
        None if ratio is None else float(ratio),
        bool(match["tuned"]),
        None if seed is None else int(seed),
    )


def method_label(method: str) -> str:
    """Return the paper's name of a method, or a readable form of an unknown one."""
    return LABELS.get(method, method.replace("_", " "))


def model_label(key: str, models: dict[str, dict]) -> str:
    """Return the label of a model from the config's `models` section; InputError if unknown."""
    if key not in models:
        raise InputError(f"model {key!r}: not in the config's models ({', '.join(models)})")
    return models[key].get("label") or key
