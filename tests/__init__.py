"""Tests; `typechecked` executes the package's annotations in them, see pyproject.toml."""

from collections.abc import Callable

from beartype import BeartypeConf, beartype

# An int is as good as a float, as for type checkers.
_checked = beartype(conf=BeartypeConf(is_pep484_tower=True))


def typechecked(function: Callable) -> Callable:
    # Dataclasses, whose constructors are generated, say themselves what is wrong with their values.
    return function if function.__code__.co_filename == "<string>" else _checked(function)
