"""Tests; `typechecked` executes the package's annotations in them, see pyproject.toml."""

from collections.abc import Callable

from beartype import BeartypeConf, beartype
from beartype.roar import BeartypeDecorHintPep673Exception

# An int is as good as a float, as for type checkers.
_checked = beartype(conf=BeartypeConf(is_pep484_tower=True))


def typechecked(function: Callable) -> Callable:
    # Configs say themselves what is wrong with their values.
    name = f"{function.__module__}.{function.__qualname__}"
    if function.__name__ == "__init__" and "config" in name.lower():
        return function
    try:
        return _checked(function)
    except BeartypeDecorHintPep673Exception:
        # Self means nothing to it outside of a class that it decorates whole.
        return function
