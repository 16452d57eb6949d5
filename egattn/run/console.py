"""What a run shows on the terminal: a header, then a progress bar or plain lines."""

import contextlib
import math
from collections.abc import Iterable, Iterator
from typing import Any

import jax
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table

from egattn.run.signals import silence


class _Console(Console):
    """Raises where Rich would end the process."""

    def on_broken_pipe(self) -> None:
        raise BrokenPipeError


class Display:
    """Progress of one run.

    Silent on processes other than 0, and for good once it fails, say because nobody reads any more:
    showing progress may not end a run.
    """

    def __init__(self, steps: int, unit: str, units_per_step: int):
        """Args: steps of the run, and what a step consists of, e.g. "tokens", and how many."""
        self._steps, self._unit, self._per_step = steps, unit, units_per_step
        # Names of runs and files may look like Rich's markup.
        self._console = _Console(
            quiet=jax.process_index() != 0, highlight=False, markup=False, soft_wrap=True
        )
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
        with self._guarded():
            self._bar.stop()

    @contextlib.contextmanager
    def _guarded(self) -> Iterator[None]:
        try:
            yield
        except OSError:
            self._console.quiet = True
            silence()

    def header(self, lines: Iterable[str | Table], first_step: int) -> None:
        """Prints what the run is; then the bar begins."""
        with self._guarded():
            for line in lines:
                self._console.print(line)
            if first_step:
                self._console.print(f"resumed at step {first_step}")
            self._task = self._bar.add_task("training", total=self._steps, completed=first_step)
            self._bar.start()

    def note(self, line: str) -> None:
        """Prints a line of its own."""
        with self._guarded():
            self._console.print(line)

    def train(self, step: int, loss: float, rate: float) -> None:
        """Shows a logged training step; `rate` in units per second."""
        shown = f"{rate:,.0f} {self._unit}/s"
        with self._guarded():
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
