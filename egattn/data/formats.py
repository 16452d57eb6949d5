"""Documents of one file: text, JSON Lines or Parquet, compressed or not."""

import bz2
import contextlib
import gzip
import importlib
import io
import itertools
import json
import lzma
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

from egattn._extras import import_extra

try:
    _zstd: Any = importlib.import_module("compression.zstd")
except ImportError:  # Before Python 3.14.
    _zstd = None


class Document(NamedTuple):
    """A document as it was found."""

    text: bytes
    """Its bytes; whether they are UTF-8 is for others to find out."""
    where: str
    """Its file, and line or row, from 1."""


ARCHIVES = (".tar", ".tgz", ".tbz2", ".txz", ".tzst", ".zip", ".7z", ".rar")
_JSON_LINES = (".jsonl", ".ndjson", ".jsonlines")


def ending(path: Path) -> str:
    """What a file's name says that it holds: its last suffix but for that of a compression.

    In lower case, as all endings are compared.
    """
    last = path.suffix.lower()
    return Path(path.stem).suffix.lower() if last in _OPEN else last


def read_file(path: Path, text_field: str) -> Iterator[Document]:
    """Yields the documents of a file.

    Args:
        path: The file; text unless its ending says otherwise.
        text_field: Field that holds the text of a record.

    Raises:
        OSError: It cannot be read.
        ValueError: It is damaged or named as something else, a record has no text, or a needed
            package is not installed.
    """
    kind = ending(path)
    if kind in _JSON_LINES or (kind == ".json" and _is_json_lines(path, text_field)):
        yield from _read_json_lines(path, text_field)
    elif kind == ".parquet":
        yield from _read_parquet(path, text_field)
    else:
        with _opened(path) as file:
            text = file.read()
        if kind != ".json" and _are_records(text, text_field):
            raise ValueError(f"{path} looks like JSON Lines; name it .jsonl")
        yield Document(text, str(path))


def text_of(record: dict[str, Any], text_field: str, where: str) -> bytes:
    """Returns the text of a record; None is an empty one.

    Raises:
        ValueError: The field is missing or holds something else.
    """
    if text_field not in record:
        raise ValueError(
            f"{where}: expected the field {text_field!r}, got the fields {', '.join(record)}"
        )
    text = record[text_field]
    if text is None:
        return b""
    if not isinstance(text, str):
        raise ValueError(
            f"{where}: expected text in the field {text_field!r}, got {type(text).__name__}"
        )
    # JSON can spell half a surrogate pair, which has no UTF-8 form: let it be counted as such.
    return text.encode("utf-8", "surrogatepass")


def _open_zstd(path: Path) -> Any:
    if _zstd is not None:
        return _zstd.open(path)
    pyarrow = import_extra("pyarrow", "parquet", f"{path.suffix} before Python 3.14")
    return io.BufferedReader(pyarrow.input_stream(str(path), compression="zstd"))


_OPEN: dict[str, Callable[[Path], Any]] = {
    ".gz": gzip.open,
    ".xz": lzma.open,
    ".bz2": bz2.open,
    ".zst": _open_zstd,
}
_DAMAGED = (EOFError, OSError, lzma.LZMAError, zlib.error, *([_zstd.ZstdError] if _zstd else []))


@contextlib.contextmanager
def _opened(path: Path) -> Iterator[Any]:
    """A file's bytes, decompressed."""
    suffix = path.suffix.lower()
    if suffix not in _OPEN:
        with path.open("rb") as file:
            yield file
        return
    try:
        with _OPEN[suffix](path) as file:
            yield file
    except _DAMAGED as error:
        if isinstance(error, OSError) and error.filename is not None:
            raise
        raise ValueError(f"{path} cannot be decompressed: {error}") from None


def _is_json_lines(path: Path, text_field: str) -> bool:
    """Whether a .json file holds a record a line; otherwise it is text.

    Raises:
        ValueError: It holds records in another way.
    """
    with _opened(path) as file:
        lines = (line for line in file if line.strip())
        first = _parsed(next(lines, b""))
        if isinstance(first, dict):
            return text_field in first or next(lines, None) is not None
    if isinstance(first, list) or _starts_array(path):
        with _opened(path) as file:
            records = _parsed(file.read())
        if isinstance(records, list) and records and isinstance(records[0], dict):
            raise ValueError(
                f"{path}: expected one JSON object a line, got an array of them; "
                f"`jq -c '.[]'` writes lines"
            )
    return False


def _are_records(text: bytes, text_field: str) -> bool:
    """Whether a text begins with two lines that are records."""
    lines = itertools.islice((line for line in io.BytesIO(text) if line.strip()), 2)
    found = [_parsed(line) if line.lstrip().startswith(b"{") else None for line in lines]
    return len(found) == 2 and all(isinstance(one, dict) and text_field in one for one in found)


def _starts_array(path: Path) -> bool:
    with _opened(path) as file:
        return file.read(64).lstrip().startswith(b"[")


def _parsed(text: bytes) -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        return None


def _read_json_lines(path: Path, text_field: str) -> Iterator[Document]:
    with _opened(path) as file:
        for number, line in enumerate(file, start=1):
            if not line.strip():
                continue
            where = f"{path}:{number}"
            try:
                record = json.loads(line)
            except UnicodeDecodeError:
                yield Document(line, where)
                continue
            except (ValueError, RecursionError) as error:
                raise ValueError(f"{where}: expected one JSON object a line: {error}") from None
            if not isinstance(record, dict):
                raise ValueError(f"{where}: expected a JSON object, got {type(record).__name__}")
            yield Document(text_of(record, text_field, where), where)


def _read_parquet(path: Path, text_field: str) -> Iterator[Document]:
    parquet = import_extra("pyarrow.parquet", "parquet", "this source")
    with _damage_named(f"{path} is not a Parquet file that can be read"):
        file = parquet.ParquetFile(path)
        fields = dict(zip(file.schema_arrow.names, file.schema_arrow.types, strict=True))
    with file:
        if text_field not in fields:
            raise ValueError(
                f"{path}: expected the field {text_field!r}, got the fields {', '.join(fields)}"
            )
        _check_is_text(fields[text_field], text_field, path)
        # Only the one column is read.
        batches = file.iter_batches(batch_size=256, columns=[text_field])
        number = 0
        while True:
            with _damage_named(f"{path} is damaged after row {number}"):
                batch = next(batches, None)
                values = [] if batch is None else _as_bytes(batch.column(0))
            if batch is None:
                break
            for value in values:
                number += 1
                yield Document(value or b"", f"{path} row {number}")
        if number != (rows := file.metadata.num_rows):
            raise ValueError(f"{path} is damaged: expected {rows} rows, got {number}")


@contextlib.contextmanager
def _damage_named(where: str) -> Iterator[None]:
    """Says in one line where pyarrow found what it cannot read."""
    pyarrow = import_extra("pyarrow", "parquet", "this source")
    try:
        yield
    except (OSError, ValueError, pyarrow.ArrowException) as error:
        raise ValueError(f"{where}: {' '.join(str(error).split())}") from None


def _check_is_text(kind: Any, text_field: str, path: Path) -> None:
    types = import_extra("pyarrow", "parquet", "this source").types
    kind = kind.value_type if types.is_dictionary(kind) else kind
    if not (types.is_string(kind) or types.is_large_string(kind) or types.is_null(kind)):
        raise ValueError(f"{path}: expected text in the field {text_field!r}, got {kind}")


def _as_bytes(column: Any) -> list[bytes | None]:
    """Values as they are stored: strings that are not UTF-8 raise only when they are decoded."""
    pyarrow = import_extra("pyarrow", "parquet", "this source")
    if pyarrow.types.is_dictionary(column.type):
        column = column.dictionary_decode()
    if pyarrow.types.is_null(column.type):
        return column.to_pylist()
    return column.cast(pyarrow.large_binary()).to_pylist()
