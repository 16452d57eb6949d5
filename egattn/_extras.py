"""Packages that come with an extra of this one."""

import importlib
from typing import Any


def import_extra(module: str, extra: str, what: str) -> Any:
    """Imports a package of an extra.

    Args:
      module: Its dotted name.
      extra: The extra that brings it.
      what: What needs it, the beginning of the message.

    Raises:
      ValueError: If it is not installed; the message names the command that brings it.
    """
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise ValueError(
            f"{what} needs {error.name}: install it with `pip install 'egattn[{extra}]'`"
        ) from None
