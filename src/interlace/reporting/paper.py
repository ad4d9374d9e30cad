"""The paper's own numbers: Tables 1-6 cell by cell, its benchmarks and the figures of its prose."""

import functools
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import pandas

TABLES_FOLDER = Path(__file__).parent / "paper_tables"
_FILES = {
    1: "table1_relative_performance.csv",
    2: "table2_methods.csv",
    3: "table3_ablations_relative.csv",
    4: "table4_ttft_speedup.csv",
    5: "table5_ablations_absolute.csv",
    6: "table6_dense_finetuning.csv",
}
NUM_LAYERS = 36
"""Decoder layers of Qwen3-VL-8B and -4B."""
MODELS = ("8B", "4B")
RATIOS = (10, 15, 20, 25)
"""Percent of the decoder layers dropped in Tables 1 and 4."""
ABLATION_RATIO = 25
"""The ratio of Tables 2, 3 and 5, which are about the 8B alone."""
OVERALL = "Overall"
"""Name of the row that holds the flat mean over the benchmarks."""
RETENTION_25_INTRODUCTION = 92.1
"""Percent of performance kept at 25 %, as the introduction says it."""
GAIN_OVER_SLEB = 28.4
"""How much better than SLEB INTERLACE is at 25 %, "in percent", as the prose says it."""


@dataclass(frozen=True)
class Benchmark:
    """A benchmark of the paper. `dense_reported`: Table 1 divides by the Qwen3 report's figure."""

    name: str
    category: str
    dataset: str
    dense_reported: bool


@dataclass(frozen=True)
class Paper:
    """Tables 1-6 as data frames indexed by row name, and the benchmarks in the paper's order."""

    benchmarks: tuple[Benchmark, ...]
    tables: dict[int, pandas.DataFrame]

    @property
    def names(self) -> tuple[str, ...]:
        """Names of the benchmarks in the paper's order."""
        return tuple(benchmark.name for benchmark in self.benchmarks)

    @property
    def categories(self) -> dict[str, tuple[str, ...]]:
        """Category -> names of its benchmarks, both in the paper's order."""
        found: dict[str, tuple[str, ...]] = {}
        for benchmark in self.benchmarks:
            found[benchmark.category] = (*found.get(benchmark.category, ()), benchmark.name)
        return found

    def cell(self, table: int, row: str, column: str) -> float | None:
        """Return the printed number, or None where the paper has no such row or column."""
        frame = self.tables[table]
        if row not in frame.index or column not in frame.columns:
            return None
        value = frame.at[row, column]
        return None if isinstance(value, float) and math.isnan(value) else float(value)

    def column(self, table: int, column: str, rows: Sequence[str]) -> dict[str, float]:
        """Return the printed numbers of `rows` in one column; every one of them must exist."""
        return {row: float(self.tables[table].at[row, column]) for row in rows}


@functools.cache
def load_paper() -> Paper:
    """Read the packaged CSVs."""
    frame = pandas.read_csv(TABLES_FOLDER / "benchmarks.csv")
    benchmarks = tuple(
        Benchmark(
            row["name"],
            row["category"],
            row["vlmevalkit_dataset"],
            row["dense_reference"] == "reported",
        )
        for row in frame.to_dict("records")
    )
    tables = {}
    for number, file in _FILES.items():
        table = pandas.read_csv(TABLES_FOLDER / file)
        tables[number] = table.set_index("name" if "name" in table.columns else "method")
    return Paper(benchmarks, tables)
