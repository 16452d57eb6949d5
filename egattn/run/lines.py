"""Records in a file, one JSON object per line, and files that change at once or not at all."""

import contextlib
import json
import math
import os
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any

import jax
import numpy as np

from egattn._config import parse_json


def to_json(record: dict[str, Any]) -> str:
    """Returns numbers and arrays as one line of JSON; what is not finite becomes null."""
    return json.dumps(_plain(record), allow_nan=False)


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    if isinstance(value, np.ndarray | np.generic | jax.Array):
        return _plain(np.asarray(value).tolist())
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value


@contextlib.contextmanager
def named(path: Path) -> Iterator[None]:
    """Names a file where writing it fails, which the operating system does not."""
    try:
        yield
    except OSError as error:
        if error.errno is None or error.filename is not None:
            raise
        raise OSError(error.errno, error.strerror, str(path)) from error


def append_line(file: IO[bytes], record: dict[str, Any]) -> None:
    """Writes a record as one line of JSON, numbers that are not finite as null."""
    with named(Path(file.name)):
        file.write(to_json(record).encode() + b"\n")
        file.flush()


def read_lines(path: Path) -> list[dict[str, Any]]:
    """Returns the records of a file of `append_line`; none if there is no such file.

    A last line that a kill has torn is left out.

    Raises:
      ValueError: If another line is no record, naming it.
    """
    records = []
    for number, line in enumerate(_whole_lines(path), 1):
        record = parse_json(line, f"{path} line {number}")
        if not isinstance(record, dict) or type(record.get("step", 0)) is not int:
            raise ValueError(
                f"{path} line {number}: expected an object with a whole step, got {record!r}"[:300]
            )
        records.append(record)
    return records


def _whole_lines(path: Path) -> list[bytes]:
    """All lines; without a last one that is torn, or is zeros as after a loss of power."""
    *lines, torn = (path.read_bytes() if path.exists() else b"").split(b"\n")
    if torn.strip(b"\0 "):
        # Files that people have edited may lack the last newline.
        with contextlib.suppress(ValueError):
            parse_json(torn, "")
            lines.append(torn)
    return lines


def drop_after(path: Path, step: int) -> None:
    """Removes records of steps that a resumed run will compute again, and a torn last line.

    Raises:
      ValueError: If a line is damaged; nothing is changed then.
    """
    records = read_lines(path)
    if path.exists():
        with replaced(path) as file:
            for record in records:
                if record.get("step", 0) <= step:
                    append_line(file, record)


def to_disk(path: Path) -> None:
    """Waits until a file, or the names in a directory, would survive a loss of power."""
    number = os.open(path, os.O_RDONLY)
    try:
        os.fsync(number)
    finally:
        os.close(number)


@contextlib.contextmanager
def replaced(path: Path) -> Iterator[IO[bytes]]:
    """Gives a file to write, which takes the place of `path` once it is complete."""
    partial = path.with_name(f"{path.name}.partial")
    try:
        with named(partial):
            with partial.open("wb") as file:
                yield file
            to_disk(partial)
            os.replace(partial, path)
            to_disk(path.parent)
    except BaseException:
        with contextlib.suppress(OSError):
            partial.unlink(missing_ok=True)
        raise
