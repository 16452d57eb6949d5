"""A source's documents on disk: checked, without duplicates, and split."""

import dataclasses
import hashlib
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

_LENGTH_BYTES = 8


@dataclasses.dataclass(frozen=True)
class Spool:
    """The documents of one split in one file, each after its length in bytes."""

    path: Path
    documents: int
    bytes: int

    def __iter__(self) -> Iterator[str]:
        """Reads the documents back, one at a time."""
        with self.path.open("rb") as file:
            while header := file.read(_LENGTH_BYTES):
                yield file.read(int.from_bytes(header, "little")).decode()


@dataclasses.dataclass(frozen=True)
class Corpus:
    """The two splits, and how many documents were left out and why."""

    splits: dict[str, Spool]
    duplicates: int
    non_utf8: int
    empty: int


def spool_corpus(
    documents: Iterable[bytes],
    directory: Path,
    *,
    validation_fraction: float,
    max_bytes: int | None,
    advance: Callable[[int], object],
) -> Corpus:
    """Reads a source once, and writes its distinct documents to one file per split.

    The split of a document depends on its content alone, so that neither the order of a source nor
    its growth ever moves a document from one split to the other. Memory holds one document and the
    hashes of those before it.

    Args:
        documents: The source.
        directory: Where the files go.
        validation_fraction: Expected share of the documents that go to the validation split.
        max_bytes: Stop once this many bytes have been kept; None reads everything.
        advance: Called with the size of each document kept.

    Returns:
        The splits and the counts.

    Raises:
        ValueError: The source holds no usable document.
    """
    seen: set[bytes] = set()
    left_out = {"duplicates": 0, "non_utf8": 0, "empty": 0}
    kept = {"train": [0, 0], "validation": [0, 0]}
    paths = {name: directory / f"documents-{name}" for name in kept}
    with paths["train"].open("wb") as train, paths["validation"].open("wb") as validation:
        files = {"train": train, "validation": validation}
        for document in documents:
            digest = hashlib.sha256(document).digest()
            reason = "duplicates" if digest in seen else _unusable(document)
            if reason is not None:
                left_out[reason] += 1
                continue
            seen.add(digest)
            name = _split_of(digest, validation_fraction)
            files[name].write(len(document).to_bytes(_LENGTH_BYTES, "little") + document)
            kept[name][0] += 1
            kept[name][1] += len(document)
            advance(len(document))
            if max_bytes is not None and sum(size for _, size in kept.values()) >= max_bytes:
                break
    if not seen:
        counts = ", ".join(f"{count} {reason}" for reason, count in left_out.items())
        raise ValueError(f"expected at least one document of UTF-8 text, got none ({counts})")
    return Corpus({name: Spool(paths[name], *kept[name]) for name in kept}, **left_out)


def _unusable(document: bytes) -> str | None:
    if not document.strip():
        return "empty"
    try:
        document.decode()
    except UnicodeDecodeError:
        return "non_utf8"
    return None


def _split_of(digest: bytes, validation_fraction: float) -> str:
    uniform = int.from_bytes(digest[:8], "big") / 2**64
    return "validation" if uniform < validation_fraction else "train"
