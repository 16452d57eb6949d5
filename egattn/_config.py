"""Configs as JSON: read back strictly, and flattened to dotted names."""

import dataclasses
import types
import typing
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal

from egattn._spelling import unknown


def parse(kind: Any, value: Any, where: str) -> Any:
    """Builds a value of type `kind` from parsed JSON.

    Args:
      kind: A dataclass, or any type its fields may have: str, int, float, bool, None, Path, Any,
        Literal, unions, `tuple[X, ...]`, tuples of a given length and `dict[str, X]`.
      value: Parsed JSON.
      where: What is read, for error messages.

    Raises:
      ValueError: If a key is unknown (naming the nearest) or missing, or a type is another.
    """
    origin, arguments = typing.get_origin(kind), typing.get_args(kind)
    if kind is Any:
        return value
    if dataclasses.is_dataclass(kind):
        return _dataclass(kind, value, where)
    if origin in (typing.Union, types.UnionType):
        return _union(arguments, value, where)
    if origin is tuple and isinstance(value, list) and arguments[-1] is Ellipsis:
        return tuple(parse(arguments[0], item, where) for item in value)
    if origin is tuple and isinstance(value, list) and len(arguments) == len(value):
        return tuple(map(parse, arguments, value, [where] * len(value)))
    if origin is dict and isinstance(value, dict):
        return {key: parse(arguments[1], item, f"{where}: {key}") for key, item in value.items()}
    if origin is Literal and value in arguments:
        return value
    if kind is Path and isinstance(value, str):
        return Path(value)
    if kind is float and type(value) is int:
        return float(value)
    if kind in (str, int, float, bool, types.NoneType) and type(value) is kind:
        return value
    raise ValueError(f"{where}: expected {getattr(kind, '__name__', kind)}, got {value!r}")


def _dataclass(kind: Any, value: Any, where: str) -> Any:
    hints = typing.get_type_hints(kind)
    if not isinstance(value, dict):
        raise ValueError(f"{where}: expected an object, got {value!r}")
    for key in value:
        if key not in hints:
            raise ValueError(f"{where}: {unknown('key', key, hints)}")
    for key in hints:
        if key not in value:
            raise ValueError(f"{where}: missing key {key!r}")
    return kind(**{key: parse(hints[key], item, f"{where}: {key}") for key, item in value.items()})


def _union(options: tuple[Any, ...], value: Any, where: str) -> Any:
    for option in options:
        try:
            return parse(option, value, where)
        except ValueError:
            continue
    raise ValueError(f"{where}: expected one of {options}, got {value!r}")


def flatten(tree: dict[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Yields ("a.b", value) for each leaf of nested dicts."""
    for key, value in tree.items():
        if isinstance(value, dict):
            yield from flatten(value, f"{prefix}{key}.")
        else:
            yield prefix + key, value
