"""What the user typed, as a dataclass."""

import contextlib
import dataclasses
import io
import itertools
from collections.abc import Sequence
from typing import Any

from egattn._config import check_local
from egattn._spelling import unknown


def parse(program: str, kind: type, args: Sequence[str], default: Any = None) -> Any:
    """Parses a dataclass; an option that does not exist is an error naming the nearest one.

    Args:
      program: What the user has typed so far, say "egattn train".
      kind: The dataclass.
      args: What follows.
      default: An instance, whose values are the options' defaults.

    Raises:
      ValueError: If the words do not fit, in one line.
      SystemExit: After printing help.
    """
    import tyro

    kwargs = {} if default is None else {"default": default}
    complaint = io.StringIO()
    try:
        with contextlib.redirect_stderr(complaint):
            config, rest = tyro.cli(
                kind, prog=program, args=args, return_unknown_args=True, **kwargs
            )
    except SystemExit as stop:
        if stop.code:
            raise ValueError(_one_line(complaint.getvalue())) from None
        raise
    if rest:
        raise ValueError(unknown("argument", rest[0], _options(kind)))
    check_local(config)
    return config


def _one_line(box: str) -> str:
    """The message of a wrapped error: what stands between its title and its first rule."""
    rows = [row.strip("│ ") for row in box.splitlines()]
    # The border has the title; where the output is not UTF-8 there is none, but a rule below it.
    message = rows[1:] if box.startswith("╭") else rows[2:]
    return " ".join(itertools.takewhile(lambda row: not set(row) <= set("─-╰╯"), message))


def _options(kind: Any, prefix: str = "--") -> list[str]:
    """Names of a config's options, nested ones included."""
    names = []
    for field in dataclasses.fields(kind):
        name = prefix + field.name.replace("_", "-")
        nested = isinstance(field.type, type) and dataclasses.is_dataclass(field.type)
        names += _options(field.type, name + ".") if nested else [name]
    return names
