"""Sources of text: each yields documents as bytes, in an order that depends only on the source."""

import platform
import sysconfig
from collections.abc import Iterable, Iterator
from pathlib import Path

from egattn._config import local_path
from egattn._extras import import_extra
from egattn.data.files import Files, files_below, one_file
from egattn.data.formats import Document, read_file, text_of


class Source:
    """Documents, to be gone through once, and the files that they come from."""

    def __init__(self, description: str, documents: Iterable[Document] | Files, text_field: str):
        self.description = description
        """What the source is, in words."""
        self.files = documents if isinstance(documents, Files) else None
        """Its files; None if it has none."""
        self.files_read = 0
        """How many of them have been opened so far."""
        self._documents, self._text_field = documents, text_field

    def __iter__(self) -> Iterator[Document]:
        """Yields the documents; one that is not UTF-8 is passed on as it is."""
        if not isinstance(self._documents, Files):
            yield from self._documents
            return
        for path in self._documents.paths:
            self.files_read += 1
            yield from read_file(path, self._text_field)

    @property
    def skipped(self) -> dict[str, int]:
        """How many files were not read, by the reason, once no more documents are wanted."""
        if self.files is None:
            return {}
        left = len(self.files.paths) - self.files_read
        return self.files.skipped | ({"beyond max_bytes": left} if left else {})


def open_source(source: str, text_field: str, suffixes: tuple[str, ...]) -> Source:
    """Finds a source of text.

    Args:
        source: `python`, `hf:NAME`, or the path of a file or directory.
        text_field: Field that holds the text of a JSON, Parquet or Hugging Face record.
        suffixes: Endings of the files to read below a directory.

    Returns:
        The source, of which no document has been read.

    Raises:
        FileNotFoundError: There is no such file or directory.
        OSError: A directory cannot be read.
        ValueError: There is nothing to read in it, or a needed package is not installed.
    """
    if source == "python":
        description = (
            f"standard library and installed packages of Python {platform.python_version()}"
        )
        return Source(description, _python_files(), text_field)
    if source.startswith("hf:"):
        name = source.removeprefix("hf:")
        return Source(f"Hugging Face dataset {name}", _hugging_face(name, text_field), text_field)
    path = local_path(Path(source))
    if path.is_dir():
        files = files_below([path], suffixes)
        if not files.paths:
            seen = ", ".join(f"{count} {reason}" for reason, count in files.skipped.items())
            raise ValueError(
                f"no file in {path} ends in one of {', '.join(suffixes)}; skipped: {seen or 'none'}"
            )
        return Source(f"directory {path}", files, text_field)
    if not path.is_file():
        raise FileNotFoundError(
            f"expected `python`, `hf:NAME` or an existing path as source, got {source!r}"
        )
    return Source(f"file {path}", one_file(path), text_field)


def _python_files() -> Files:
    names = ("stdlib", "platstdlib", "purelib", "platlib")
    roots = dict.fromkeys(Path(sysconfig.get_path(name)).resolve() for name in names)
    # The standard library's own site-packages may be another environment's; purelib and platlib
    # are this interpreter's.
    others = ("site-packages", "dist-packages")
    return files_below(list(roots), (".py",), skip=others, follow=False)


def _hugging_face(name: str, text_field: str) -> Iterator[Document]:
    datasets = import_extra("datasets", "hf", "this source")
    records = datasets.load_dataset(name, split="train", streaming=True)
    places = ((f"hf:{name} row {number}", record) for number, record in enumerate(records, 1))
    return (Document(text_of(record, text_field, where), where) for where, record in places)
