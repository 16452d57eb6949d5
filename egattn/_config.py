"""Configs: written as JSON, read back strictly, compared field by field."""

import dataclasses
import json
import types
import typing
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal

from egattn._spelling import unknown

RUNTIME = {"runtime": True}
"""Metadata of a field that says where or how something is computed, not what: it may differ when a
run goes on."""
LOCAL = {"runtime": True, "local": True}
"""Metadata of a field that may even differ between the processes of one job, such as a path."""


def to_json(config: Any) -> str:
    """Returns a dataclass as indented JSON, paths as strings."""
    return json.dumps(dataclasses.asdict(config), indent=2, default=str) + "\n"


def changes(old: Any, new: Any, prefix: str = "") -> Iterator[tuple[str, Any, Any]]:
    """Yields (dotted name, old, new) for fields in which two configs compute something else.

    Args:
      old: A dataclass.
      new: Another one of the same type.
      prefix: Put before every name.
    """
    for field in dataclasses.fields(old):
        before, after = getattr(old, field.name), getattr(new, field.name)
        if before == after or field.metadata.get("runtime"):
            continue
        if dataclasses.is_dataclass(before) and type(before) is type(after):
            yield from changes(before, after, f"{prefix}{field.name}.")
        else:
            yield prefix + field.name, before, after


def shared_values(config: Any, prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Yields (dotted name, value) of the fields that all processes of a job have in common."""
    for field in dataclasses.fields(config):
        value = getattr(config, field.name)
        if dataclasses.is_dataclass(value):
            yield from shared_values(value, f"{prefix}{field.name}.")
        elif not field.metadata.get("local"):
            yield prefix + field.name, value


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
