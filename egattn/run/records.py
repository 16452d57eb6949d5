"""What a run writes while it goes on: `metrics.jsonl` and TensorBoard events."""

import contextlib
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import jax
import numpy as np
from matplotlib import colormaps
from tensorboardX import summary
from tensorboardX.event_file_writer import EventsWriter
from tensorboardX.proto import event_pb2 as _event_pb2

from egattn.run.directory import RunDirectory
from egattn.run.lines import append_line, named, read_lines
from egattn.run.signals import say

# Protobuf makes its classes at run time.
event_pb2: Any = _event_pb2
_NOTHING: Mapping[str, Any] = {}
# Seconds until TensorBoard can see an event at the latest.
_FLUSHED_EVERY = 60


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
            with named(self._path):
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
        return any(x.get("kind") == kind and x.get("step") == step for x in lines)


class Board:
    """TensorBoard events: scalars, histograms and heat maps by name.

    Silent on processes other than 0, and for good once it fails: showing progress may not end a
    run, whose numbers are in `metrics.jsonl` all the same.
    """

    def __init__(self, directory: RunDirectory, resumed_at: int):
        # Not a `SummaryWriter`, whose thread writes: were that to die, say of a full disk, its
        # queue would soon be full, and whoever adds to it wait for ever.
        self._events: EventsWriter | None = None
        self._flushed = time.monotonic()
        if jax.process_index() == 0:
            with self._guarded():
                directory.tensorboard.mkdir(exist_ok=True)
                self._events = EventsWriter(str(directory.tensorboard / "events"))
                # Events of later steps, of a run that was killed, no longer count.
                begun = event_pb2.SessionLog(status=event_pb2.SessionLog.START)
                self._add(resumed_at + 1, session_log=begun)

    def __enter__(self):
        """Returns itself."""
        return self

    def __exit__(self, *_):
        """Flushes and closes the file."""
        with self._guarded():
            if self._events is not None:
                self._events.close()

    @contextlib.contextmanager
    def _guarded(self) -> Iterator[None]:
        try:
            yield
        except Exception as error:
            events, self._events = self._events, None
            with contextlib.suppress(OSError):
                if events is not None:
                    events.close()
            say(f"TensorBoard events end here: {error}", error=True)

    def _add(self, step: int, **content: Any) -> None:
        if self._events is not None:
            self._events.write_event(event_pb2.Event(wall_time=time.time(), step=step, **content))

    def draw(
        self,
        kind: str,
        step: int,
        values: Mapping[str, Any],
        more: Callable[["Board", str, int, Any], None],
    ) -> None:
        """Adds a record: its numbers, and what `more` adds of it."""
        with self._guarded():
            if self._events is not None:
                self.scalars(kind, step, values)
                more(self, kind, step, values)
                if time.monotonic() - self._flushed > _FLUSHED_EVERY:
                    self.flush()

    def scalars(self, group: str, step: int, values: Mapping[str, Any]) -> None:
        """Adds `group/name` for each value that is a number."""
        for name, value in values.items():
            if isinstance(value, int | float):
                self.scalar(f"{group}/{name}", step, value)

    def scalar(self, name: str, step: int, value: Any) -> None:
        """Adds a number."""
        self._add(step, summary=summary.scalar(name, value))

    def histogram(self, name: str, step: int, values: np.ndarray) -> None:
        """Adds a histogram of numbers, unless some are not finite."""
        if np.isfinite(values).all():
            self._add(step, summary=summary.histogram(name, values.reshape(-1), bins="auto"))

    def heat_map(self, name: str, step: int, values: np.ndarray, top: float) -> None:
        """Adds an image of values [rows, columns], from 0 (dark) to `top` (bright)."""
        pixels = colormaps["viridis"](np.clip(np.nan_to_num(values / top), 0, 1))[..., :3]
        self.image(name, step, np.kron(pixels, np.ones((24, 24, 1))))

    def image(self, name: str, step: int, pixels: np.ndarray) -> None:
        """Adds an image [height, width, 3] of numbers from 0 to 1."""
        shown = summary.image(name, pixels.astype(np.float32), dataformats="HWC")
        self._add(step, summary=shown)

    def flush(self) -> None:
        """Writes what is still in memory."""
        if self._events is not None:
            self._events.flush()
        self._flushed = time.monotonic()
