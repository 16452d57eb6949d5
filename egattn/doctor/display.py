"""Shows what the doctor found: a table for each part, or one JSON object."""

import json
import math
from collections.abc import Sequence
from typing import Any

from rich.console import Console
from rich.table import Table

from egattn.doctor.row import Part, Row

_STATES = {True: "ok", False: "WRONG", None: "-"}


def show_part(part: Part) -> None:
    """Prints the table of a part, and below it what its rows with numbers have to say."""
    console = _console()
    measured = [row for row in part.rows if row.numbers]
    plain = [row for row in part.rows if not row.numbers]
    console.print(f"\n{part.name}", style="bold")
    if measured:
        names = list(dict.fromkeys(name for row in measured for name in row.numbers))
        numbers = [[_number(row.numbers.get(name)) for name in names] for row in measured]
        console.print(_table(measured, numbers, names))
    if plain:
        console.print(_table(plain, [[row.found] for row in plain]))
    for row in measured:
        if row.found:
            console.print(f"{row.name}: {row.found}", soft_wrap=True)


def show_verdict(parts: Sequence[Part], seconds: float) -> None:
    """Prints whether the machine is fit, and what is wrong otherwise."""
    wrong = _wrong(parts)
    verdict = f"{len(wrong)} wrong: {', '.join(wrong)}" if wrong else "nothing is wrong"
    _console().print(f"\n{verdict} ({seconds:.0f} s)", soft_wrap=True)


def to_json(parts: Sequence[Part], seconds: float) -> str:
    """One JSON object; numbers that are not finite are null."""
    found = {
        part.name: [
            {
                "name": row.name,
                "ok": row.ok,
                "found": row.found,
                "numbers": {
                    name: x if math.isfinite(x) else None for name, x in row.numbers.items()
                },
            }
            for row in part.rows
        ]
        for part in parts
    }
    values: dict[str, Any] = {"ok": not _wrong(parts), "seconds": seconds, "parts": found}
    return json.dumps(values, allow_nan=False)


def _wrong(parts: Sequence[Part]) -> list[str]:
    return [row.name for part in parts for row in part.rows if row.ok is False]


def _console() -> Console:
    # Into a file rich assumes 80 columns and would fold cells. Names may look like markup.
    console = Console(highlight=False, markup=False, emoji=False)
    if not console.is_terminal:
        console = Console(highlight=False, markup=False, emoji=False, width=100)
    return console


def _number(value: float | None) -> str:
    if value is None:
        return ""
    return f"{value:.2f}" if value < 10 else f"{value:.0f}" if math.isfinite(value) else str(value)


def _table(rows: list[Row], cells: list[list[str]], numbers: Sequence[str] = ()) -> Table:
    """Names, states and cells; the cells are numbers under their names, or one text."""
    table = Table("", "", box=None, pad_edge=False, show_header=bool(numbers))
    for name in numbers or ("",):
        table.add_column(name, justify="right" if numbers else "left", overflow="fold")
    for row, line in zip(rows, cells, strict=True):
        style = "red" if row.ok is False else None
        table.add_row(row.name, _STATES[row.ok], *line, style=style)
    return table
