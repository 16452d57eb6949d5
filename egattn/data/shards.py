"""Windows of tokens into ArrayRecord files of bounded size."""

import itertools
import os
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

import numpy as np
from array_record.python.array_record_module import ArrayRecordWriter
from tokenizers import Encoding, Tokenizer

from egattn.data.corpus import Text
from egattn.data.manifest import Packing, ShardManifest, SplitManifest, sha256_file
from egattn.data.tokenizer import check_exact, spellings

# Small enough to be copied and checked file by file, large enough that a billion tokens make tens.
SHARD_BYTES = 64 * 2**20
# One call's text for the tokenizer, which shares its documents out among all cores; its working
# memory is about 25 times as large.
BATCH_BYTES = min(os.cpu_count() or 1, 32) * 2**20


_COUNTS = ("documents", "too_short", "tokens", "end_tokens", "windows", "target_bytes")


class _ShardWriter:
    """Writes records to files, and names them once their number is known."""

    def __init__(self, directory: Path, split: str, record_bytes: int):
        self._directory = directory
        self._split = split
        self._records_per_shard = max(1, SHARD_BYTES // record_bytes)
        self._counts: list[int] = []
        self._writer: ArrayRecordWriter | None = None

    def write(self, record: bytes) -> None:
        writer = self._writer
        if writer is None or self._counts[-1] == self._records_per_shard:
            writer = self._open_shard()
        writer.write(record)
        self._counts[-1] += 1

    def finish(self) -> tuple[ShardManifest, ...]:
        self._close_shard()
        shards = []
        for index, windows in enumerate(self._counts):
            name = f"{self._split}-{index:05d}-of-{len(self._counts):05d}.array_record"
            path = self._provisional(index).rename(self._directory / name)
            shards.append(ShardManifest(name, windows, path.stat().st_size, sha256_file(path)))
        return tuple(shards)

    def _provisional(self, index: int) -> Path:
        return self._directory / f"{self._split}-{index:05d}"

    def _open_shard(self) -> ArrayRecordWriter:
        self._close_shard()
        path = self._provisional(len(self._counts))
        # One record per group: reading any one window then decompresses no other.
        self._writer = ArrayRecordWriter(str(path), "group_size:1")
        self._counts.append(0)
        return self._writer

    def _close_shard(self) -> None:
        if self._writer is None:
            return
        try:
            self._writer.close()
        except RuntimeError as error:
            # This is how the library reports a full disk.
            message = " ".join(str(error).split())
            raise OSError(f"cannot write to {self._directory}: {message}") from None
        self._writer = None


def write_split(
    documents: Iterable[Text],
    directory: Path,
    split: str,
    *,
    sources: int,
    tokenizer: Tokenizer,
    end: int,
    context_length: int,
    packing: Packing,
    gap: int,
    dtype: str,
    advance: Callable[[int], object],
) -> SplitManifest:
    """Tokenises documents and writes their windows.

    A window holds `context_length + 1` tokens and starts with the last token of the window before
    it, so that each token but the first is predicted once. Packed documents of a source are cut as
    one text, each with its end token, and what remains after the last window is dropped; the
    paper's packing cuts each document by itself, and drops what remains of each.

    Args:
        documents: The split's documents, source by source.
        directory: Where the files go.
        split: Name of the split, which begins the names of the files.
        sources: How many there are.
        tokenizer: Encodes the documents.
        end: Token that ends each.
        context_length: Predictions per window.
        packing: How documents become windows.
        gap: Tokens to drop from the start of the first document.
        dtype: Type of the stored tokens.
        advance: Called with the bytes of text of each batch of documents.

    Returns:
        The counts and the files.

    Raises:
        OSError: A file cannot be written.
        ValueError: The tokenizer loses text: names the document and the place.
    """
    stored = np.dtype(dtype).newbyteorder("<")
    writer = _ShardWriter(directory, split, (context_length + 1) * stored.itemsize)
    spelled = spellings(tokenizer)
    cut = _Cut(context_length, packing, end, np.array([len(spelling) for spelling in spelled]), gap)
    sample, found = "", [0] * sources
    for source, texts in itertools.groupby(documents, lambda document: document.source):
        cut.start()
        for batch, tokens in _encoded(texts, tokenizer, end, spelled):
            for windows in cut.windows(tokens):
                if not sample and len(windows):
                    sample = tokenizer.decode(windows[0].tolist(), skip_special_tokens=False)
                for window in windows.astype(stored):
                    writer.write(window.tobytes())
                found[source] += len(windows)
            advance(sum(len(document.text.encode()) for document in batch))
    return SplitManifest(
        **cut.counts(), windows_by_source=tuple(found), sample=sample, shards=writer.finish()
    )


def _encoded(
    documents: Iterable[Text], tokenizer: Tokenizer, end: int, spelled: list[bytes]
) -> Iterator[tuple[list[Text], list[np.ndarray]]]:
    """Yields documents in batches, and the tokens of each, of which no byte is lost, with its end.

    While the caller writes one batch the next one is encoded.
    """
    waiting = None
    with ThreadPoolExecutor(max_workers=1) as pool:
        for batch in _in_batches(documents):
            # "Fast" leaves out each token's place in the text, which nothing here reads.
            texts, encode = [text for text, *_ in batch], tokenizer.encode_batch_fast
            following = batch, pool.submit(encode, texts, add_special_tokens=False)
            if waiting is not None:
                yield _exact(*waiting, end, spelled)
            waiting = following
        if waiting is not None:
            yield _exact(*waiting, end, spelled)


def _exact(
    batch: list[Text], encodings: Future[list[Encoding]], end: int, spelled: list[bytes]
) -> tuple[list[Text], list[np.ndarray]]:
    found = []
    for (text, where, _), encoding in zip(batch, encodings.result(), strict=True):
        ids = encoding.ids
        # The end token has no bytes: text that gives it is lost.
        check_exact(text, ids, spelled, where)
        found.append(np.array([*ids, end], np.int64))
    return batch, found


class _Cut:
    """Cuts tokens of documents into windows, and counts."""

    def __init__(
        self, context_length: int, packing: Packing, end: int, token_bytes: np.ndarray, gap: int
    ):
        self._length, self._packing, self._gap = context_length, packing, gap
        self._end, self._bytes = end, token_bytes
        self._counts, self._used = dict.fromkeys(_COUNTS, 0), 0
        self.start()

    def start(self) -> None:
        """Begins a text."""
        # Tokens that wait for more; the first one is the last window's last one, if there is one.
        self._rest, self._is_start = np.empty(0, np.int64), True

    def windows(self, documents: list[np.ndarray]) -> Iterator[np.ndarray]:
        """Yields windows [N, context_length + 1]; documents come with their end tokens."""
        self._counts["documents"] += len(documents)
        self._counts["tokens"] += sum(map(len, documents))
        first, *others = documents
        found = [first[self._gap :], *others]
        self._gap = 0
        if self._packing == "paper":
            for tokens in found:
                windows = self._cut(tokens, is_start=True)
                self._counts["too_short"] += not len(windows)
                yield windows
        else:
            tokens = np.concatenate([self._rest, *found])
            windows = self._cut(tokens, self._is_start)
            self._is_start = self._is_start and not len(windows)
            self._rest = tokens[len(windows) * self._length :]
            yield windows

    def counts(self) -> dict[str, int]:
        """All counts of a `SplitManifest`."""
        return {**self._counts, "dropped_tokens": self._counts["tokens"] - self._used}

    def _cut(self, tokens: np.ndarray, is_start: bool) -> np.ndarray:
        windows = _windows_of(tokens, self._length)
        targets = tokens[1 : len(windows) * self._length + 1]
        self._counts["windows"] += len(windows)
        self._counts["target_bytes"] += int(self._bytes[targets].sum())
        kept = tokens[: len(targets) + 1] if is_start and len(windows) else targets
        self._counts["end_tokens"] += int((kept == self._end).sum())
        self._used += len(kept)
        return windows


def _windows_of(tokens: np.ndarray, context_length: int) -> np.ndarray:
    if len(tokens) <= context_length:
        return np.empty((0, context_length + 1), tokens.dtype)
    return np.lib.stride_tricks.sliding_window_view(tokens, context_length + 1)[::context_length]


def _in_batches(documents: Iterable[Text]) -> Iterator[list[Text]]:
    batch, size = [], 0
    for document in documents:
        batch.append(document)
        size += len(document.text)
        if size >= BATCH_BYTES:
            yield batch
            batch, size = [], 0
    if batch:
        yield batch
