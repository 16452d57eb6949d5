"""What a check found."""

from typing import NamedTuple


class Row(NamedTuple):
    """One thing that was looked at."""

    name: str
    ok: bool | None
    """False: something is wrong; None: not for this machine."""
    found: str
    """What was seen, or what is wrong, in a line."""
    numbers: dict[str, float] = {}
    """Measured values by name."""


class Part(NamedTuple):
    """Checks of one kind."""

    name: str
    rows: list[Row]
    stuck: bool = False
    """Whether it did not end."""


def failed(name: str, error: Exception) -> Row:
    """The row of a check that ended in an exception: type, and the first line of the message."""
    line = next(iter(str(error).splitlines()), "")
    return Row(name, False, f"{type(error).__name__}: {line:.200}")
