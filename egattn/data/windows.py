"""The reading side: batches of windows, chosen by one global example index."""

import itertools
import sys
from collections.abc import Callable, Iterable, Iterator
from fractions import Fraction
from pathlib import Path
from typing import Any, cast

import grain
import numpy as np
from jaxtyping import Float32, Int32

from egattn.data.manifest import Manifest

# A step's batch is read by one thread while others read the next ones; records are small and come
# from the page cache, so a few are enough.
_READ_OPTIONS = grain.ReadOptions(num_threads=2, prefetch_buffer_size=4)


class _Reader:
    """Rows of a split by index, cropped to the length asked for."""

    def __init__(self, directory: Path, manifest: Manifest, split: str, context_length: int):
        if split not in manifest.splits:
            raise ValueError(f"expected a split in {sorted(manifest.splits)}, got {split!r}")
        if not manifest.splits[split].windows:
            raise ValueError(f"expected at least one {split} window in {directory}, got none")
        if not 1 <= context_length <= manifest.context_length:
            raise ValueError(
                f"expected context_length from 1 to {manifest.context_length}, the length of the "
                f"windows in {directory}, got {context_length}"
            )
        self.length = manifest.splits[split].windows
        self._shape = (-1, manifest.context_length + 1)
        self._row = slice(context_length + 1)
        self._dtype = np.dtype(manifest.dtype).newbyteorder("<")
        paths = [str(directory / shard.file) for shard in manifest.splits[split].shards]
        self._records: Any = grain.sources.ArrayRecordDataSource(paths)

    def read(self, indices: Iterable[int]) -> Int32[np.ndarray, "rows tokens"]:
        # All at once: one by one takes ten times as long.
        data = b"".join(self._records.__getitems__(list(indices)))
        rows = np.frombuffer(data, self._dtype).reshape(self._shape)
        return rows[:, self._row].astype(np.int32)


def batches(
    directory: Path,
    manifest: Manifest,
    split: str,
    *,
    batch_size: int,
    context_length: int,
    seed: int,
    start_index: int = 0,
    process_index: int = 0,
    process_count: int = 1,
) -> Iterator[Int32[np.ndarray, "rows tokens"]]:
    """Yields shuffled batches for training, without end.

    Example `i` of the endless sequence is fixed by `seed` alone: every pass over the split has its
    own order, and step `k` takes the examples from `k * batch_size` on. So the one number
    `start_index` is the whole state: an iterator started there goes on with exactly the batches
    that an uninterrupted one would give, on any number of processes.

    Args:
        directory: The prepared data.
        manifest: Its manifest, from `load_manifest`.
        split: `train` or `validation`.
        batch_size: Examples per step over all processes.
        context_length: Predictions per row; shorter than the data's windows crops each window to
            its first `context_length + 1` tokens.
        seed: Chooses the order. Several sources have their shares of the examples, evenly spread.
        start_index: Global index of the first example.
        process_index: This process.
        process_count: Processes that share each batch. Each gets the same number of consecutive
            rows: in the order of the processes they are the batch of one process.

    Returns:
        int32 `[batch_size // process_count, context_length + 1]` each; threads read ahead.

    Raises:
        ValueError: `context_length` exceeds the data's, the batch does not divide, an index is out
            of range, or the split has no window.
    """
    if batch_size < 1 or batch_size % process_count:
        raise ValueError(
            f"expected a batch_size that {process_count} processes divide, got {batch_size}"
        )
    if not 0 <= process_index < process_count:
        raise ValueError(f"expected process_index below {process_count}, got {process_index}")
    if start_index < 0:
        raise ValueError(f"expected start_index of at least 0, got {start_index}")
    reader = _Reader(directory, manifest, split, context_length)
    rows = batch_size // process_count
    first = start_index + process_index * rows
    # Steps, not examples, are what the threads share out, and the order is computed from indices
    # alone: it depends neither on the threads nor on the processes.
    order = _order(manifest, split, seed)

    def read_step(step: int) -> Int32[np.ndarray, "rows tokens"]:
        start = first + step * batch_size
        return reader.read(order(index) for index in range(start, start + rows))

    steps = grain.MapDataset.range(sys.maxsize // batch_size).map(read_step)
    return iter(steps.to_iter_dataset(_READ_OPTIONS))


def windows_of_batch(
    manifest: Manifest, split: str, *, batch_size: int, seed: int, step: int
) -> list[int]:
    """Returns which windows of a split the batch of training step `step`, from 1 on, consists of.

    Window `w` is row `w` of the split's shards, one after the other. Arguments are as in `batches`.
    """
    order = _order(manifest, split, seed)
    return [order(index) for index in range((step - 1) * batch_size, step * batch_size)]


def _order(manifest: Manifest, split: str, seed: int) -> Callable[[int], int]:
    """Window of each example of the endless sequence."""
    counts = manifest.splits[split].windows_by_source
    for number, count in enumerate(counts):
        if not count:
            raise ValueError(f"{manifest.sources[number].source} has no {split} window")
    # The first source's order is that of a source alone. Each has its own: texts that say the
    # same in two languages are not to come side by side.
    seeds = [seed, *(_seed(seed, number) for number in range(1, len(counts)))]
    places = itertools.pairwise([0, *itertools.accumulate(counts)])
    orders = [
        cast(Callable[[int], int], _shuffled(start, stop, own).__getitem__)
        for (start, stop), own in zip(places, seeds, strict=True)
    ]
    if len(orders) == 1:
        return orders[0]
    ratios = _ratios([Fraction(source.weight) for source in manifest.sources])

    def order(index: int) -> int:
        source, example = _place(index, ratios)
        return orders[source](example)

    return order


def _seed(seed: int, number: int) -> int:
    return int(np.random.SeedSequence([seed, number]).generate_state(1)[0])


def _shuffled(start: int, stop: int, seed: int) -> grain.MapDataset:
    return grain.MapDataset.range(start, stop).seed(seed).shuffle().repeat(None)


def _ratios(shares: list[Fraction]) -> list[Fraction]:
    """Share of each source in what those before it leave."""
    before = itertools.accumulate(shares, initial=Fraction(0))
    return [share / (1 - taken) for share, taken in zip(shares, before, strict=False)]


def _place(index: int, ratios: list[Fraction]) -> tuple[int, int]:
    """Source of an example of a mixture, and which of the source's examples it is.

    Of the first `n` examples `floor(n * ratio)` are the first source's; the others share what is
    left in the same way.
    """
    *others, _ = ratios
    for source, ratio in enumerate(others):
        before, after = (n * ratio.numerator // ratio.denominator for n in (index, index + 1))
        if after > before:
            return source, before
        index -= before
    return len(others), index


def evaluation_batches(
    directory: Path,
    manifest: Manifest,
    *,
    batch_size: int,
    context_length: int,
    split: str = "validation",
    max_windows: int | None = None,
) -> Iterator[tuple[Int32[np.ndarray, "batch_size tokens"], Float32[np.ndarray, " batch_size"]]]:
    """Yields every window of a split once, in the order of the files.

    If not all are wanted, the first ones are taken, of several sources evenly from all of them.

    Args:
        directory: The prepared data.
        manifest: Its manifest, from `load_manifest`.
        batch_size: Rows per batch.
        context_length: Predictions per row, as in `batches`.
        split: `train` or `validation`.
        max_windows: Stop after this many windows; None takes all.

    Returns:
        An iterator over tokens, int32 `[batch_size, context_length + 1]`, and weights, float32
        `[batch_size]`: 1 for a window, 0 for the rows that fill up the last batch by repeating one.

    Raises:
        ValueError: As in `batches`.
    """
    if batch_size < 1:
        raise ValueError(f"expected a batch_size of at least 1, got {batch_size}")
    if max_windows is not None and max_windows < 1:
        raise ValueError(f"expected max_windows of at least 1, got {max_windows}")
    reader = _Reader(directory, manifest, split, context_length)
    count = reader.length if max_windows is None else min(reader.length, max_windows)
    # Files of one source come in no order already.
    stretch = reader.length if len(manifest.splits[split].windows_by_source) > 1 else count
    rows = [index * stretch // count for index in range(count)]
    return (
        _padded(reader, rows[start : start + batch_size], batch_size)
        for start in range(0, count, batch_size)
    )


def _padded(
    reader: _Reader, rows: list[int], batch_size: int
) -> tuple[Int32[np.ndarray, "batch_size tokens"], Float32[np.ndarray, " batch_size"]]:
    tokens = reader.read(rows)
    missing = batch_size - len(tokens)
    weight = np.concatenate([np.ones(len(tokens)), np.zeros(missing)]).astype(np.float32)
    return np.concatenate([tokens, np.repeat(tokens[-1:], missing, axis=0)]), weight
