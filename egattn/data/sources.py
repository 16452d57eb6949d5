"""Sources of text: each yields documents as bytes, in an order that depends only on the source."""

import platform
import sysconfig
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from egattn._config import local_path
from egattn._extras import import_extra
from egattn.data.config import PrepareConfig, weighted
from egattn.data.files import Files, files_below, one_file
from egattn.data.formats import ARCHIVES, Document, ending, read_file, text_of


class Source:
    """Documents, to be gone through once, and the files that they come from."""

    def __init__(self, description: str, documents: Iterable[Document] | Files, text_field: str):
        self.description = description
        """What the source is, in words."""
        self.files = documents if isinstance(documents, Files) else None
        """Its files; None if it has none."""
        self.files_read = 0
        """How many of them have been opened so far."""
        self.within: str | None = None
        """The file, or the data set, that has more documents than have been yielded so far."""
        self._documents, self._text_field = documents, text_field

    def __iter__(self) -> Iterator[Document]:
        """Yields the documents; one that is not UTF-8 is passed on as it is."""
        if not isinstance(self._documents, Files):
            yield from self._noted(self.description, iter(self._documents))
            return
        for path in self._documents.paths:
            self.files_read += 1
            yield from self._noted(str(path), read_file(path, self._text_field))

    def _noted(self, name: str, documents: Iterator[Document]) -> Iterator[Document]:
        following = next(documents, None)
        while following is not None:
            document, following = following, next(documents, None)
            self.within = None if following is None else name
            yield document

    @property
    def skipped(self) -> dict[str, int]:
        """How many files were not read, by the reason, once no more documents are wanted."""
        if self.files is None:
            return {}
        left = len(self.files.paths) - self.files_read
        return self.files.skipped | ({"beyond max_bytes": left} if left else {})


def open_source(source: str, config: PrepareConfig) -> Source:
    """Finds a source of text.

    Args:
        source: One of the config's, without its weight.
        config: Says what of it is to be read.

    Returns:
        The source, of which no document has been read.

    Raises:
        FileNotFoundError: There is no such file or directory.
        OSError: A directory cannot be read.
        ValueError: There is nothing to read in it, an option does not fit, or a needed package is
            not installed.
    """
    field = config.text_field
    if source == "python":
        words = f"standard library and installed packages of Python {platform.python_version()}"
        return Source(words, _some(_python_files(config), words, (".py",)), field)
    if source.startswith("hf:"):
        _check_no_patterns(source, config)
        if hint := _weight_alone(source):
            raise ValueError(f"expected `hf:NAME` as source, got {source!r}{hint}")
        return Source(_described(source, config), _hugging_face(source, config), field)
    path = local_path(Path(source))
    if path.is_dir():
        files = _below([path], config.suffixes, config)
        return Source(f"directory {path}", _some(files, str(path), config.suffixes), field)
    if not path.is_file():
        raise FileNotFoundError(
            f"expected `python`, `hf:NAME` or an existing path as source, got {source!r}"
            f"{_weight_alone(source)}"
        )
    _check_no_patterns(source, config)
    if ending(path) in ARCHIVES:
        raise ValueError(f"{path} is an archive of files: unpack it first")
    return Source(f"file {path}", one_file(path), field)


def _some(files: Files, where: str, suffixes: tuple[str, ...]) -> Files:
    if not files.paths:
        seen = ", ".join(f"{count} {reason}" for reason, count in files.skipped.items())
        raise ValueError(
            f"no file in {where} ends in one of {', '.join(suffixes)} and is included; skipped: "
            f"{seen or 'none'}"
        )
    return files


def _weight_alone(source: str) -> str:
    try:
        weighted(source.removeprefix("hf:"))
    except ValueError:
        return ""
    return "; a weight is for several sources, not for one"


def _check_no_patterns(source: str, config: PrepareConfig) -> None:
    if config.include or config.exclude:
        raise ValueError(
            f"expected a directory as source of which include and exclude choose files, got "
            f"{source!r}"
        )


def _python_files(config: PrepareConfig) -> Files:
    names = ("stdlib", "platstdlib", "purelib", "platlib")
    roots = dict.fromkeys(Path(sysconfig.get_path(name)).resolve() for name in names)
    # The standard library's own site-packages may be another environment's; purelib and platlib
    # are this interpreter's.
    others = ("site-packages", "dist-packages")
    return _below(list(roots), (".py",), config, skip=others, follow=False)


def _below(
    roots: list[Path], suffixes: tuple[str, ...], config: PrepareConfig, **options: Any
) -> Files:
    return files_below(roots, suffixes, include=config.include, exclude=config.exclude, **options)


def _described(source: str, config: PrepareConfig) -> str:
    words = [f"Hugging Face dataset {source.removeprefix('hf:')}"]
    words += [f"configuration {config.hf_config}"] if config.hf_config else []
    words += [f"revision {config.hf_revision}"] if config.hf_revision else []
    return ", ".join([*words, f"split {config.hf_split}"])


def _hugging_face(source: str, config: PrepareConfig) -> Iterator[Document]:
    datasets = import_extra("datasets", "hf", "this source")
    records = datasets.load_dataset(
        source.removeprefix("hf:"),
        config.hf_config,
        split=config.hf_split,
        revision=config.hf_revision,
        streaming=True,
    )
    places = ((f"{source} row {number}", record) for number, record in enumerate(records, 1))
    return (Document(text_of(record, config.text_field, where), where) for where, record in places)
