"""The paper's rules for averages, over whatever benchmarks there are, never silently.

Checked against the paper's own cells by `interlace.reporting.audit`. A number may be an array of
resamples: the same rules then say how an average varies.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy

Number = float | numpy.ndarray
"""A score, or its bootstrap resamples."""


@dataclass(frozen=True)
class Average:
    """A mean over `count` of the `total` benchmarks it should cover; None over no benchmark."""

    value: Number | None
    count: int
    total: int

    @property
    def complete(self) -> bool:
        """Whether every benchmark it should cover is in it."""
        return self.count == self.total


def average(values: Mapping[str, Number | None], names: Sequence[str]) -> Average:
    """Return the flat mean of `values` over `names`; absent or None ones are left out, counted.

    A category average takes the category's benchmarks as `names`, the overall average all of them
    (the paper's overall is the flat mean of the 12, not of the 4 categories).
    """
    present = [values[name] for name in names if values.get(name) is not None]
    mean = sum(present) / len(present) if present else None
    return Average(mean, len(present), len(names))


def relative(values: Mapping[str, Number], reference: Mapping[str, Number]) -> dict[str, Number]:
    """Return 100 x value / reference (percent) where both are there and the reference is not 0.

    Table 1: pruned over dense, benchmark by benchmark. Where one resample of a reference is 0, NaN.
    """
    return {
        name: _percent(value, reference[name])
        for name, value in values.items()
        if numpy.any(reference.get(name, 0))
    }


def _percent(value: Number, reference: Number) -> Number:
    if isinstance(reference, numpy.ndarray):
        reference = numpy.where(reference == 0, numpy.nan, reference)
    return 100 * value / reference


def mean_of_ratios(
    values: Mapping[str, Number], reference: Mapping[str, Number], names: Sequence[str]
) -> Average:
    """Return the mean over `names` of 100 x value / reference (percent).

    Table 3: a mean of ratios, not a ratio of means.
    """
    return average(relative(values, reference), names)


def relative_performance(
    values: Mapping[str, Number], reference: Mapping[str, Number], names: Sequence[str]
) -> Average:
    """Return 100 x flat mean of `values` / flat mean of `reference` (percent), RP of Table 2.

    Both means run over the benchmarks that both have, so that unlike sets are never divided.
    """
    shared = [name for name in names if name in values and name in reference]
    mean, reference_mean = average(values, shared).value, average(reference, shared).value
    if mean is None or not numpy.any(reference_mean):
        return Average(None, 0, len(names))
    return Average(_percent(mean, reference_mean), len(shared), len(names))


def mean_of_categories(
    values: Mapping[str, Number], categories: Mapping[str, Sequence[str]]
) -> float:
    """Return the flat mean over all benchmarks from the means of their categories.

    Needed where the paper prints category averages only (Table 2).
    """
    total = sum(len(names) for names in categories.values())
    return sum(values[category] * len(names) for category, names in categories.items()) / total
