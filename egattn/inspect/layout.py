"""Lines and tables of `egattn inspect`, within 100 columns."""

import math
from collections.abc import Iterable, Mapping

from rich.console import Console
from rich.table import Table


def show_facts(console: Console, facts: Mapping[str, str]) -> None:
    """Prints a line for each topic."""
    for name, text in facts.items():
        console.print(f"  {name:13s} {text}", soft_wrap=True)


def short(checksum: str | None) -> str:
    """The beginning of a checksum, by which people tell them apart."""
    return "unknown" if checksum is None else checksum[:12]


def number(value: float, form: str = ".4g") -> str:
    """A number, or that it is none."""
    return format(value, form) if math.isfinite(value) else "not finite"


def table(columns: Iterable[str], rows: Iterable[list[str]], left: tuple[int, ...] = (0,)) -> Table:
    """A table without lines.

    Args:
      columns: Their headings.
      rows: Its cells.
      left: Columns of words, by their number; the others are of numbers.
    """
    table = Table(box=None, pad_edge=False)
    for i, name in enumerate(columns):
        table.add_column(name, justify="left" if i in left else "right", overflow="fold")
    for row in rows:
        table.add_row(*row)
    return table
