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


def append_line(file: IO[bytes], record: dict[str, Any]) -> None:
    """Writes a record as one line of JSON, numbers that are not finite as null."""
    file.write(to_json(record).encode() + b"\n")
    file.flush()


def read_lines(path: Path) -> list[dict[str, Any]]:
    """Returns the records of a file of `append_line`; none if there is no such file.

    A last line that a kill has torn is left out.

    Raises:
      ValueError: If another line is no JSON object, naming it.
    """
    records = []
    for number, line in enumerate(_whole_lines(path), 1):
        try:
            record = json.loads(line)
        except ValueError as error:
            raise ValueError(f"{path} line {number} is not JSON: {error}") from None
        if not isinstance(record, dict):
            raise ValueError(f"{path} line {number}: expected an object, got {record!r}"[:300])
        records.append(record)
    return records


def _whole_lines(path: Path) -> list[bytes]:
    """All lines; without a last one that is torn, or is zeros as after a loss of power."""
    *lines, torn = (path.read_bytes() if path.exists() else b"").split(b"\n")
    if torn.strip(b"\0 "):
        # Files that people have edited may lack the last newline.
        with contextlib.suppress(ValueError):
            json.loads(torn)
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


@contextlib.contextmanager
def replaced(path: Path) -> Iterator[IO[bytes]]:
    """Gives a file to write, which takes the place of `path` once it is complete."""
    partial = path.with_name(f"{path.name}.partial")
    with partial.open("wb") as file:
        yield file
    os.replace(partial, path)
