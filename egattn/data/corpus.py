"""A source's documents on disk: checked, without duplicates, and split."""

import dataclasses
import hashlib
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import IO, Literal, NamedTuple

from egattn.data.formats import Document
from egattn.data.manifest import LongDocument

_LENGTH_BYTES = 8
# Places of documents that are not UTF-8 that are told.
_MOST_PLACES = 10
# Documents told as the longest.
_MOST_LONGEST = 5


class Text(NamedTuple):
    """A document that is to be learned from."""

    text: str
    where: str
    """Its file, and line or row."""
    source: int
    """Number of its source, from 0."""


@dataclasses.dataclass(frozen=True)
class Spool:
    """The documents of one split in one file, source by source."""

    path: Path
    documents: int
    bytes: int

    def __iter__(self) -> Iterator[Text]:
        """Reads the documents back, one at a time."""
        with self.path.open("rb") as file:
            while (where := _read(file)) is not None:
                text, source = _read(file) or b"", _read(file) or b""
                yield Text(text.decode(), os.fsdecode(where), int.from_bytes(source, "little"))


@dataclasses.dataclass(frozen=True)
class Corpus:
    """The two splits, and how many documents were left out and why."""

    splits: dict[str, Spool]
    duplicates: int
    non_utf8: int
    empty: int
    seen: tuple[int, ...]
    """Documents that were read from each source, those left out included."""
    sha256: tuple[str, ...]
    """Checksum of all of them."""
    non_utf8_places: tuple[str, ...]
    """Where the first of those are that are not UTF-8."""
    longest: tuple[LongDocument, ...]
    """The longest documents of both splits."""
    places: tuple[float, float]
    """First and last place of a document between 0 and 1; the validation split is those below
    validation_fraction."""
    split_by: Literal["document", "position"] = "document"
    """Whether documents were shared out, or the only one was cut."""

    @property
    def documents(self) -> int:
        """Documents of both splits."""
        return sum(spool.documents for spool in self.splits.values())


def spool_corpus(
    sources: Sequence[Iterable[Document]],
    directory: Path,
    *,
    validation_fraction: float,
    max_bytes: Sequence[int | None],
    advance: Callable[[int], object],
) -> Corpus:
    """Reads sources once, and writes its distinct documents to one file per split.

    The split of a document depends on its content alone, so that neither the order of a source nor
    its growth ever moves a document from one split to the other. Memory holds one document and the
    hashes of those before it.

    Args:
        sources: The sources. A document that several have is the first one's.
        directory: Where the files go.
        validation_fraction: Expected share of the documents that go to the validation split.
        max_bytes: Stop once this many bytes of each have been kept; None reads everything.
        advance: Called with the size of each document kept.

    Returns:
        The splits and the counts.

    Raises:
        ValueError: No source holds a usable document.
    """
    found = _Found(validation_fraction)
    paths = {name: directory / f"documents-{name}" for name in found.kept}
    with paths["train"].open("wb") as train, paths["validation"].open("wb") as validation:
        files = {"train": train, "validation": validation}
        for number, (documents, most) in enumerate(zip(sources, max_bytes, strict=True)):
            found.next_source()
            for document in documents:
                name = found.add(document)
                if name is None:
                    continue
                _write_text(files[name], document, number)
                advance(len(document.text))
                if most is not None and found.bytes_of_source >= most:
                    break
    return found.corpus(paths)


class _Found:
    """Shares documents out to the splits, leaves some out, and counts."""

    def __init__(self, validation_fraction: float):
        self._validation_fraction = validation_fraction
        self._seen = set[bytes]()
        self._sources: list[_Checksum] = []
        self._left_out = {"duplicates": 0, "non_utf8": 0, "empty": 0}
        self._non_utf8: list[str] = []
        self._longest: list[LongDocument] = []
        self._places = (1.0, 0.0)
        self.bytes_of_source = 0
        self.kept = {"train": [0, 0], "validation": [0, 0]}

    def next_source(self) -> None:
        """Begins to count the documents of a source."""
        self._sources.append(_Checksum())
        self.bytes_of_source = 0

    def add(self, document: Document) -> str | None:
        """Says which split a document belongs to; None leaves it out."""
        text, where = document
        digest = self._sources[-1].add(text)
        reason = "duplicates" if digest in self._seen else _unusable(text)
        if reason is not None:
            self._left_out[reason] += 1
            if reason == "non_utf8" and len(self._non_utf8) < _MOST_PLACES:
                self._non_utf8.append(where)
            return None
        self._seen.add(digest)
        place = int.from_bytes(digest[:8], "big") / 2**64
        self._places = min(self._places[0], place), max(self._places[1], place)
        name = "validation" if place < self._validation_fraction else "train"
        self.kept[name][0] += 1
        self.kept[name][1] += len(text)
        self.bytes_of_source += len(text)
        self._longest = sorted(
            [*self._longest, LongDocument(where, len(text))], key=lambda found: -found.bytes
        )[:_MOST_LONGEST]
        return name

    def corpus(self, paths: dict[str, Path]) -> Corpus:
        if not self._seen:
            counts = ", ".join(f"{count} {reason}" for reason, count in self._left_out.items())
            raise ValueError(f"expected at least one document of UTF-8 text, got none ({counts})")
        return Corpus(
            {name: Spool(paths[name], *kept) for name, kept in self.kept.items()},
            duplicates=self._left_out["duplicates"],
            non_utf8=self._left_out["non_utf8"],
            empty=self._left_out["empty"],
            seen=tuple(source.documents for source in self._sources),
            sha256=tuple(source.sha256 for source in self._sources),
            non_utf8_places=tuple(self._non_utf8),
            longest=tuple(self._longest),
            places=self._places,
        )


def checksum(documents: Iterable[Document]) -> str:
    """Returns the checksum that a corpus of these documents has."""
    found = _Checksum()
    for document in documents:
        found.add(document.text)
    return found.sha256


class _Checksum:
    """Of documents, one after the other."""

    def __init__(self):
        self._digests = hashlib.sha256()
        self.documents = 0

    def add(self, text: bytes) -> bytes:
        """Returns the digest of the document alone."""
        digest = hashlib.sha256(text).digest()
        self._digests.update(digest)
        self.documents += 1
        return digest

    @property
    def sha256(self) -> str:
        return self._digests.hexdigest()


def split_by_position(corpus: Corpus, validation_fraction: float) -> Corpus:
    """Cuts the only document of a corpus: its end becomes the validation split.

    Args:
        corpus: A corpus of one document.
        validation_fraction: Share of the text that goes there; the cut is where a line ends, if
            one does within the first tenth of it.
    """
    ((text, where, source),) = (one for spool in corpus.splits.values() for one in spool)
    place = round(len(text) * (1 - validation_fraction))
    line = text.find("\n", place, place + (len(text) - place) // 10)
    place = line + 1 if line >= 0 else place
    splits = {}
    for name, part in (("train", text[:place]), ("validation", text[place:])):
        path, content = corpus.splits[name].path, part.encode()
        with path.open("wb") as file:
            if content:
                _write_text(file, Document(content, where), source)
        splits[name] = Spool(path, bool(content), len(content))
    return dataclasses.replace(corpus, splits=splits, split_by="position")


def _write_text(file: IO[bytes], document: Document, source: int) -> None:
    number = source.to_bytes(_LENGTH_BYTES, "little")
    for value in (os.fsencode(document.where), document.text, number):
        file.write(len(value).to_bytes(_LENGTH_BYTES, "little") + value)


def _read(file: IO[bytes]) -> bytes | None:
    header = file.read(_LENGTH_BYTES)
    return file.read(int.from_bytes(header, "little")) if header else None


def _unusable(document: bytes) -> str | None:
    try:
        text = document.decode()
    except UnicodeDecodeError:
        return "non_utf8"
    return "empty" if not text or text.isspace() else None
