"""The manifest: what a prepared data directory holds, with a checksum for every file."""

import dataclasses
import hashlib
import json
from pathlib import Path
from typing import Any, Literal

import numpy as np

from egattn._config import local_path, parse, parse_json
from egattn.data.files import Fingerprint

Packing = Literal["concat", "segments", "paper"]

FORMAT_VERSION = 2
MANIFEST_NAME = "manifest.json"
TOKENIZER_NAME = "tokenizer.json"
TOKEN_BYTES_NAME = "token_bytes.npy"


@dataclasses.dataclass(frozen=True)
class ShardManifest:
    """One ArrayRecord file."""

    file: str
    """File name inside the data directory."""
    windows: int
    """Records in the file, one window each."""
    bytes: int
    """Size of the file."""
    sha256: str
    """Checksum of the file, hexadecimal."""


@dataclasses.dataclass(frozen=True)
class LongDocument:
    """One of the longest documents."""

    where: str
    """Its file, and line or row from 1."""
    bytes: int
    """Its size."""


@dataclasses.dataclass(frozen=True)
class SourceManifest:
    """One of the sources."""

    source: str
    """What it is, in words."""
    weight: str
    """Its share of the training examples, a fraction such as 7/10."""
    fingerprint: Fingerprint | None
    """Its files as they were; None where it has none."""
    files: int
    """Files that were read."""
    skipped: dict[str, int]
    """Files, and directories with all that they hold, that were not read, by the reason."""
    stopped_within: str | None
    """The file, or the data set, of which max_bytes left something over; None: there is none."""


@dataclasses.dataclass(frozen=True)
class SplitManifest:
    """The training or the validation split.

    Consecutive windows of what is cut as one share one token. Packed documents of a source are cut
    as one: `tokens == windows * context_length + 1 + dropped_tokens` with one source; each further
    source that has a window adds 1. In the paper's packing each document is cut by itself:
    `documents - too_short` takes the place of 1.
    """

    documents: int
    """Documents in the split, whether or not a window holds them."""
    too_short: int
    """Documents with fewer than context_length + 1 tokens, which the paper's packing drops."""
    tokens: int
    """Tokens of all documents, end tokens included."""
    dropped_tokens: int
    """Tokens in no window: the end of each source, or in the paper's packing of each document; of
    one document that was cut, the gap before validation too."""
    end_tokens: int | None
    """End tokens in windows, one that two windows share counted once; None: not counted."""
    windows: int
    """Windows of context_length + 1 tokens."""
    windows_by_source: tuple[int, ...]
    """How many of these each source gave; they are in the order of the sources."""
    target_bytes: int
    """UTF-8 bytes of the tokens to predict: all of each window but its first."""
    sample: str
    """The first window as text; empty if there is none, or it was not kept."""
    shards: tuple[ShardManifest, ...]
    """The files, in reading order."""


@dataclasses.dataclass(frozen=True)
class Manifest:
    """Everything a reader needs to know about a prepared data directory."""

    format_version: int
    """Version of this layout."""
    source: str
    """Where the text came from, in words."""
    packing: Packing
    """How documents became windows, see `PrepareConfig`."""
    context_length: int
    """Predictions per window; a window holds one token more."""
    vocab_size: int
    """Real size of the vocabulary: every token id is below it."""
    dtype: str
    """Type of the stored tokens: uint16 or uint32, little-endian."""
    end_token_id: int
    """Id of the token that ends every document."""
    tokenizer_sha256: str
    """Checksum of tokenizer.json."""
    token_bytes_sha256: str
    """Checksum of token_bytes.npy."""
    sources: tuple[SourceManifest, ...]
    """The sources; empty where they were not described one by one."""
    tokenizer_file_sha256: str | None
    """Checksum of the file that the tokenizer was taken from; None: it was learned."""
    split_by: Literal["document", "position"]
    """Whether documents were shared out, or the only one was cut."""
    duplicates: int
    """Documents left out because an identical one came before."""
    non_utf8: int
    """Documents left out because they are not UTF-8."""
    non_utf8_places: tuple[str, ...]
    """File, and line or row from 1, of the first ten of those."""
    empty: int
    """Documents left out because they hold nothing but white space."""
    longest: tuple[LongDocument, ...]
    """The five longest documents, the longest first."""
    splits: dict[str, SplitManifest]
    """The splits, `train` and `validation`."""
    config: dict[str, Any]
    """The `PrepareConfig` that made the directory, as JSON."""

    @property
    def document_end(self) -> int | None:
        """Token after which a window's next document starts apart; None: windows are whole."""
        return self.end_token_id if self.packing == "segments" else None

    @property
    def sha256(self) -> str:
        """Checksum of the data itself: of the tokenizer and of every shard, in order."""
        parts = [self.tokenizer_sha256]
        for name in sorted(self.splits):
            parts += [shard.sha256 for shard in self.splits[name].shards]
        if self.packing == "segments":
            # Its shards are those of "concat", and what is learned from them is not.
            parts.append(self.packing)
        if len(self.sources) > 1:
            # They say in which order windows come.
            windows = self.splits["train"].windows_by_source
            parts += [f"{n} {one.weight}" for n, one in zip(windows, self.sources, strict=True)]
        return hashlib.sha256(" ".join(parts).encode()).hexdigest()

    def save(self, directory: Path) -> None:
        """Writes `manifest.json` into `directory`."""
        text = json.dumps(dataclasses.asdict(self), indent=2)
        (directory / MANIFEST_NAME).write_text(text + "\n", encoding="utf-8")


def sha256_file(path: Path) -> str:
    """Returns the hexadecimal SHA-256 of a file."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def load_manifest(directory: Path, *, verify: bool = True) -> Manifest:
    """Reads and checks the manifest of a prepared data directory.

    Args:
        directory: A directory written by `egattn prepare`.
        verify: Read every shard and compare its checksum. Without it only the presence and the
            size of the shards, and the checksum of the tokenizer, are checked.

    Returns:
        The manifest.

    Raises:
        FileNotFoundError: `directory` holds no manifest.
        ValueError: The directory is not on this machine, the manifest is not of this format, or a
            file is missing or damaged.
    """
    path = local_path(directory) / MANIFEST_NAME
    if not path.is_file():
        raise FileNotFoundError(
            f"no {MANIFEST_NAME} in {directory}: run `egattn prepare {directory}` first"
        )
    manifest = read_manifest(directory)
    _check_sha256(directory / TOKENIZER_NAME, manifest.tokenizer_sha256)
    _check_sha256(directory / TOKEN_BYTES_NAME, manifest.token_bytes_sha256)
    for split in manifest.splits.values():
        for shard in split.shards:
            _check_size(directory / shard.file, shard.bytes)
            if verify:
                _check_sha256(directory / shard.file, shard.sha256)
    return manifest


def token_bytes(directory: Path) -> np.ndarray:
    """Returns the UTF-8 length of every token, int32 `[vocab_size]`; the end token's is 0."""
    return np.load(directory / TOKEN_BYTES_NAME, allow_pickle=False)


def _check_size(path: Path, expected: int) -> None:
    if not path.is_file():
        raise ValueError(f"{path} is missing: expected {expected} bytes; prepare the data again")
    size = path.stat().st_size
    if size != expected:
        raise ValueError(
            f"{path} is damaged: expected {expected} bytes, got {size} (sha256 "
            f"{sha256_file(path)}); prepare the data again"
        )


def _check_sha256(path: Path, expected: str) -> None:
    if not path.is_file():
        raise ValueError(f"{path} is missing: expected sha256 {expected}; prepare the data again")
    actual = sha256_file(path)
    if actual != expected:
        raise ValueError(
            f"{path} disagrees with {MANIFEST_NAME}: expected sha256 {expected}, got {actual}; "
            f"prepare the data again"
        )


def read_manifest(directory: Path) -> Manifest:
    """Reads a manifest that is there; whether the files are as it says is not checked."""
    path = directory / MANIFEST_NAME
    values = parse_json(path.read_bytes(), str(path))
    version = values.get("format_version") if isinstance(values, dict) else None
    if version not in (1, FORMAT_VERSION):
        raise ValueError(f"{path}: expected format_version {FORMAT_VERSION}, got {version!r}")
    return parse(Manifest, _of_format_1(values) if version == 1 else values, str(path))


_NOT_SAID = {
    "packing": "paper",
    "sources": [],
    "tokenizer_file_sha256": None,
    "split_by": "document",
    "non_utf8_places": [],
    "longest": [],
}
_NOT_SAID_OF_SPLITS = {"end_tokens": None, "sample": ""}


def _of_format_1(values: dict[str, Any]) -> dict[str, Any]:
    """Adds what the first format did not say; it had the paper's packing alone."""
    splits, config = values.get("splits"), values.get("config")
    if isinstance(splits, dict):
        splits = {
            name: _NOT_SAID_OF_SPLITS | {"windows_by_source": [split.get("windows")]} | split
            if isinstance(split, dict)
            else split
            for name, split in splits.items()
        }
    if isinstance(config, dict):
        config = {"packing": "paper", **config}
        config |= {"source": [config["source"]]} if "source" in config else {}
    known = {"splits": splits, "config": config}
    return {
        **_NOT_SAID,
        **values,
        **{name: value for name, value in known.items() if name in values},
    }
