"""What a run writes while it goes on: `metrics.jsonl` and TensorBoard events."""

import contextlib
import threading
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import jax
import numpy as np
from matplotlib import colormaps
from tensorboardX import SummaryWriter

from egattn.run.directory import RunDirectory
from egattn.run.lines import append_line, read_lines
from egattn.run.signals import say

_NOTHING: Mapping[str, Any] = {}


class Records:
    """Writer of a run's records; does nothing on processes other than 0."""

    def __init__(self, directory: RunDirectory):
        self._path = directory.metrics
        self._lock = threading.Lock()
        self._file = self._path.open("ab") if jax.process_index() == 0 else None

    def __enter__(self):
        """Returns itself."""
        return self

    def __exit__(self, *_):
        """Closes the file."""
        if self._file:
            self._file.close()

    def write(self, kind: str, step: int | None, values: Mapping[str, Any] = _NOTHING) -> None:
        """Writes one record: its kind, its step if it has one, plain values or arrays.

        Any thread may.
        """
        if self._file:
            with self._lock:
                where = {} if step is None else {"step": step}
                append_line(self._file, {"kind": kind, **where, **values})

    def has(self, kind: str, step: int) -> bool:
        """Whether there is a record of this kind and step; only process 0 knows."""
        lines = read_lines(self._path) if self._file else []
        return any(x["kind"] == kind and x.get("step") == step for x in lines)


class Board:
    """TensorBoard events: scalars, histograms and heat maps by name.

    Silent on processes other than 0, and for good once it fails: showing progress may not end a
    run, whose numbers are in `metrics.jsonl` all the same.
    """

    def __init__(self, directory: RunDirectory, resumed_at: int):
        self._writer: Any = None
        if jax.process_index() == 0:
            with self._guarded():
                self._writer = SummaryWriter(str(directory.tensorboard), purge_step=resumed_at + 1)

    def __enter__(self):
        """Returns itself."""
        return self

    def __exit__(self, *_):
        """Flushes and closes the files."""
        self._add("close")

    @contextlib.contextmanager
    def _guarded(self) -> Iterator[None]:
        try:
            yield
        except Exception as error:
            self._writer = None
            say(f"TensorBoard events end here: {error}", error=True)

    def _add(self, method: str, *args: Any, **kwargs: Any) -> None:
        with self._guarded():
            if self._writer is not None:
                self._check_worker()
                getattr(self._writer, method)(*args, **kwargs)

    def _check_worker(self) -> None:
        """Raises OSError if the writer's thread has died, say of a full disk.

        Its queue would soon be full, and whoever adds to it wait for ever.
        """
        events = self._writer.file_writer.event_writer
        if not events._worker.is_alive():
            events._event_queue.cancel_join_thread()
            raise OSError("they cannot be written")

    def draw(
        self,
        kind: str,
        step: int,
        values: Mapping[str, Any],
        more: Callable[["Board", str, int, Any], None],
    ) -> None:
        """Adds a record: its numbers, and what `more` adds of it."""
        with self._guarded():
            if self._writer is not None:
                self.scalars(kind, step, values)
                more(self, kind, step, values)

    def scalars(self, group: str, step: int, values: Mapping[str, Any]) -> None:
        """Adds `group/name` for each value that is a number."""
        for name, value in values.items():
            if isinstance(value, int | float):
                self.scalar(f"{group}/{name}", step, value)

    def scalar(self, name: str, step: int, value: Any) -> None:
        """Adds a number."""
        self._add("add_scalar", name, value, step)

    def histogram(self, name: str, step: int, values: np.ndarray) -> None:
        """Adds a histogram of numbers, unless some are not finite."""
        if np.isfinite(values).all():
            self._add("add_histogram", name, values.reshape(-1), step)

    def heat_map(self, name: str, step: int, values: np.ndarray, top: float) -> None:
        """Adds an image of values [rows, columns], from 0 (dark) to `top` (bright)."""
        pixels = colormaps["viridis"](np.clip(np.nan_to_num(values / top), 0, 1))[..., :3]
        self.image(name, step, np.kron(pixels, np.ones((24, 24, 1))))

    def image(self, name: str, step: int, pixels: np.ndarray) -> None:
        """Adds an image [height, width, 3] of numbers from 0 to 1."""
        self._add("add_image", name, pixels.astype(np.float32), step, dataformats="HWC")

    def flush(self) -> None:
        """Writes what is still in memory."""
        self._add("flush")
