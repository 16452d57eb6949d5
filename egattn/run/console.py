"""What a run shows on the terminal: a header, then a progress bar or plain lines."""

import contextlib
import math
import sys
from collections.abc import Iterable, Iterator
from typing import Any

import jax
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table

from egattn.run.signals import silence


class PlainConsole(Console):
    """Prints names as they are, which may look like Rich's markup, and fails like `print`."""

    def __init__(self, **options: Any):
        """Args: options of Rich's console."""
        super().__init__(highlight=False, markup=False, emoji=False, **options)

    def on_broken_pipe(self) -> None:
        """Raises where Rich would end the process."""
        raise BrokenPipeError


class _Output:
    """Standard output, which falls silent once it fails, say because nobody reads any more.

    Whatever thread writes: Rich would end the process, or the thread that draws the bar.
    """

    def __init__(self):
        self._stream: Any = sys.stdout

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)

    def write(self, text: str) -> None:
        with self._guarded():
            self._stream.write(text)

    def flush(self) -> None:
        with self._guarded():
            self._stream.flush()

    @contextlib.contextmanager
    def _guarded(self) -> Iterator[None]:
        try:
            yield
        except (OSError, ValueError):
            silence()


class Display:
    """Progress of one run; silent on processes other than 0.

    Showing it may not end a run: what cannot be written is not.
    """

    def __init__(self, steps: int, unit: str, units_per_step: int):
        """Args: steps of the run, and what a step consists of, e.g. "tokens", and how many."""
        self._steps, self._unit, self._per_step = steps, unit, units_per_step
        self._console = PlainConsole(file=_Output(), quiet=jax.process_index() != 0, soft_wrap=True)
        self._bar = Progress(
            TextColumn("{task.description}", markup=False),
            BarColumn(),
            MofNCompleteColumn(),
            TimeRemainingColumn(),
            console=self._console,
            disable=not self._console.is_terminal,
        )

    def __enter__(self):
        """Returns itself."""
        return self

    def __exit__(self, *_):
        """Ends the bar."""
        self._bar.stop()

    def header(self, lines: Iterable[str | Table], first_step: int) -> None:
        """Prints what the run is; then the bar begins."""
        for line in lines:
            self._console.print(line)
        if first_step:
            self._console.print(f"resumed at step {first_step}")
        self._task = self._bar.add_task("training", total=self._steps, completed=first_step)
        self._bar.start()

    def note(self, line: str) -> None:
        """Prints a line of its own."""
        self._console.print(line)

    def train(self, step: int, loss: float, rate: float) -> None:
        """Shows a logged training step; `rate` in units per second."""
        shown = f"{rate:,.0f} {self._unit}/s"
        if not self._console.is_terminal:
            left = (self._steps - step) * self._per_step / rate
            self._console.print(f"step {step}  loss {loss:.4f}  {shown}  {left:.0f} s left")
        self._bar.update(self._task, completed=step, description=f"loss {loss:.4f}  {shown}")


def parameter_table(params: Any) -> Table:
    """Names, shapes and counts of parameters, for a header."""
    table = Table("parameter", "shape", "count", box=None, pad_edge=False)
    leaves = jax.tree_util.tree_leaves_with_path(params)
    for path, x in leaves:
        name = "/".join(str(getattr(p, "key", p)) for p in path)
        table.add_row(name, " x ".join(map(str, x.shape)) or "scalar", f"{x.size:,}")
    table.add_row("total", "", f"{sum(math.prod(x.shape) for _, x in leaves):,}")
    return table


def devices_line(mesh: jax.sharding.Mesh) -> str:
    """Devices, processes and mesh, for a header."""
    kind = jax.devices()[0].device_kind
    shape = ", ".join(f"{axis}={size}" for axis, size in mesh.shape.items())
    count = jax.process_count()
    return f"devices: {jax.device_count()} x {kind} in {count} processes ({shape})"
