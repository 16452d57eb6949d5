"""Sources of text: each yields documents as bytes, in an order that depends only on the source."""

import hashlib
import json
import os
import platform
import sysconfig
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from egattn._config import local_path
from egattn._extras import import_extra


def open_source(
    source: str, text_field: str, suffixes: tuple[str, ...]
) -> tuple[str, Iterator[bytes]]:
    """Finds a source of text.

    Args:
        source: `python`, `hf:NAME`, or the path of a file or directory.
        text_field: Field that holds the text of a JSON, Parquet or Hugging Face record.
        suffixes: Endings of the files to read below a directory.

    Returns:
        What the source is, in words, and its documents. A document that is not UTF-8 is passed on
        as it is: counting those is the caller's business.

    Raises:
        FileNotFoundError: There is no such file or directory.
        ValueError: There is nothing to read in it, or a needed package is not installed.
    """
    if source == "python":
        description = (
            f"standard library and installed packages of Python {platform.python_version()}"
        )
        return description, _read_files(_python_files(), text_field)
    if source.startswith("hf:"):
        name = source.removeprefix("hf:")
        return f"Hugging Face dataset {name}", _read_hugging_face(name, text_field)
    path = local_path(Path(source))
    if path.is_dir():
        files = _files_below([path], suffixes)
        if not files:
            raise ValueError(f"no file in {path} ends in one of {', '.join(suffixes)}")
        return f"directory {path}", _read_files(files, text_field)
    if not path.is_file():
        raise FileNotFoundError(
            f"expected `python`, `hf:NAME` or an existing path as source, got {source!r}"
        )
    return f"file {path}", _read_files([path], text_field)


def _python_files() -> list[Path]:
    names = ("stdlib", "platstdlib", "purelib", "platlib")
    roots = dict.fromkeys(Path(sysconfig.get_path(name)).resolve() for name in names)
    # The standard library's own site-packages may be another environment's; purelib and platlib
    # are this interpreter's.
    return _files_below(list(roots), (".py",), skip=("site-packages", "dist-packages"))


def _files_below(
    roots: list[Path], suffixes: tuple[str, ...], skip: tuple[str, ...] = ()
) -> list[Path]:
    """Lists the files below `roots`, in the order of the hashes of their relative paths.

    A byte budget takes a prefix of this order. Alphabetical order would fill it with the few
    packages that start with an "a"; the hash of the path mixes them all, needs no file to be read
    first, and does not depend on where the root is.
    """
    found: dict[Path, bytes] = {}
    for root in roots:
        for folder, folders, names in os.walk(root):
            folders[:] = [
                name
                for name in folders
                if not name.startswith(".") and name not in ("__pycache__", *skip)
            ]
            for name in names:
                path = Path(folder, name)
                if path.suffix in suffixes and path.is_file():
                    relative = path.relative_to(root).as_posix()
                    found.setdefault(path, hashlib.sha256(os.fsencode(relative)).digest())
    return sorted(found, key=lambda path: (found[path], path))


def _read_files(files: list[Path], text_field: str) -> Iterator[bytes]:
    for path in files:
        if path.suffix == ".jsonl":
            yield from _read_jsonl(path, text_field)
        elif path.suffix == ".parquet":
            yield from _read_parquet(path, text_field)
        else:
            yield path.read_bytes()


def _read_jsonl(path: Path, text_field: str) -> Iterator[bytes]:
    with path.open("rb") as file:
        for number, line in enumerate(file, start=1):
            if not line.strip():
                continue
            where = f"{path}:{number}"
            try:
                record = json.loads(line)
            except UnicodeDecodeError:
                yield line
                continue
            except json.JSONDecodeError as error:
                raise ValueError(f"{where}: expected one JSON object a line: {error}") from None
            if not isinstance(record, dict):
                raise ValueError(f"{where}: expected a JSON object, got {type(record).__name__}")
            yield _text_of(record, text_field, where)


def _read_parquet(path: Path, text_field: str) -> Iterator[bytes]:
    parquet = import_extra("pyarrow.parquet", "parquet", "this source")
    try:
        file = parquet.ParquetFile(path)
    except ValueError as error:
        raise ValueError(f"{path} is not a Parquet file: {error}") from None
    names = file.schema_arrow.names
    # Only the one column is read; a file without it has its columns named instead.
    columns = [text_field] if text_field in names else names
    for batch in file.iter_batches(batch_size=256, columns=columns):
        for record in batch.to_pylist():
            yield _text_of(record, text_field, str(path))


def _read_hugging_face(name: str, text_field: str) -> Iterator[bytes]:
    datasets = import_extra("datasets", "hf", "this source")
    return (
        _text_of(record, text_field, f"hf:{name}")
        for record in datasets.load_dataset(name, split="train", streaming=True)
    )


def _text_of(record: dict[str, Any], text_field: str, where: str) -> bytes:
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
