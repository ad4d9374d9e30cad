"""A table as data, ready to be written: rows, columns, and in each cell ours and the paper's."""

from dataclasses import dataclass, field

from interlace.reporting.seeds import Spread


@dataclass(frozen=True)
class Cell:
    """One number of ours, the paper's, and what has to be known about ours.

    `low`, `high`: 95 % interval. `partial`: scored on part of a benchmark. `coverage`: (n, m) where
    an average runs over n of m benchmarks and n < m. `spread`: over seeds, where ours is their mean.
    `defined`: the share (0-1) of resamples that have a value, where it is too small for an interval.
    """

    ours: float | None = None
    paper: float | None = None
    low: float | None = None
    high: float | None = None
    partial: bool = False
    coverage: tuple[int, int] | None = None
    spread: Spread | None = None
    defined: float | None = None

    @property
    def difference(self) -> float | None:
        """Ours minus the paper's; None if either is missing or ours averages fewer benchmarks."""
        if self.ours is None or self.paper is None or self.coverage:
            return None
        return self.ours - self.paper


@dataclass(frozen=True)
class Column:
    """A column under a group heading; `digits` after the point."""

    key: str
    label: str
    group: str = ""
    digits: int = 1


@dataclass(frozen=True)
class Row:
    """A row; `attributes` are the texts that follow its label, `is_average` sets it apart."""

    key: str
    label: str
    group: str = ""
    is_average: bool = False
    attributes: tuple[str, ...] = ()


@dataclass
class Table:
    """A table ready to be written. `standin`: why its numbers stand in for the paper's, if they do.

    `intervals`: whether they are written beside the numbers (the CSV always has them).
    """

    number: int | str
    title: str
    corner: str
    columns: list[Column]
    rows: list[Row]
    cells: dict[tuple[str, str], Cell]
    attributes: tuple[str, ...] = ()
    notes: list[str] = field(default_factory=list)
    standin: tuple[str, ...] = ()
    intervals: bool = False

    def cell(self, row: Row, column: Column) -> Cell:
        """Return the cell of a row and a column (an empty one where there is nothing)."""
        return self.cells.get((row.key, column.key), Cell())

    def has_paper(self, column: Column) -> bool:
        """Whether any cell of the column has a counterpart in the paper."""
        return any(self.cell(row, column).paper is not None for row in self.rows)
