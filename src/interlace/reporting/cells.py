"""What stands in a table's cells, heading and notes as text, the same in every format."""

from interlace.reporting import standin
from interlace.reporting.layout import Cell, Table

MISSING = "–"
PARTIAL = "†"


def number(value: float | None, digits: int) -> str:
    """Return a rounded number, or a dash for None."""
    return MISSING if value is None else f"{value:.{digits}f}"


def signed(value: float | None, digits: int) -> str:
    """Return a rounded difference with its sign, or a dash for None; zero has no sign."""
    if value is None:
        return MISSING
    text = f"{value:+.{digits}f}"
    return text[1:] if float(text) == 0 else text.replace("-", "−")


def ours(cell: Cell, digits: int, *, spread: bool = True) -> str:
    """Return our number with its marks: † from a part, ± over seeds, [n/m] from fewer benchmarks."""
    text = number(cell.ours, digits)
    if cell.partial:
        text += PARTIAL
    if spread and cell.spread:
        text += f" {deviation(cell, digits)}"
    if cell.coverage:
        text += f" [{cell.coverage[0]}/{cell.coverage[1]}]"
    return text


def deviation(cell: Cell, digits: int) -> str:
    """Return the standard deviation over seeds as `± 0.8`, or nothing where there is one seed."""
    return f"± {number(cell.spread.deviation, digits)}" if cell.spread else ""


def bracket(cell: Cell, digits: int) -> str:
    """Return our number's interval as `[94.1, 98.2]`, or nothing where it has none."""
    if cell.ours is None or cell.low is None or cell.high is None:
        return ""
    return f"[{signless(cell.low, digits)}, {signless(cell.high, digits)}]"


def signless(value: float, digits: int) -> str:
    """Return a rounded number, negative ones with a minus sign; zero has no sign."""
    text = f"{value:.{digits}f}"
    return text.lstrip("-") if float(text) == 0 else text.replace("-", "−")


def heading(table: Table) -> str:
    """Return `Table 1: title`, marked where it is a stand-in."""
    return f"Table {table.number}: {table.title}{standin.title_mark(table.standin, table.title)}"


def notes(table: Table) -> list[str]:
    """Return the notes under a table, what stands in first."""
    first = standin.sentence(table.standin)
    return [*([first] if first else []), *table.notes]


def group_label(table: Table, index: int) -> list[str]:
    """Return the group of a row if it is the first of the group, else an empty text."""
    row = table.rows[index]
    first = index == 0 or table.rows[index - 1].group != row.group
    return [row.group if first else ""]
