"""What a run shows on the terminal: a header, then a progress bar or plain lines."""

import math
from typing import Any

import jax
from jax.sharding import Mesh
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table

from egattn.sharding import batch_shards
from egattn.train.config import TrainConfig
from egattn.train.step import TrainState


class Display:
    """Progress of one run; silent on processes other than 0."""

    def __init__(self, config: TrainConfig):
        self._config = config
        self._console = Console(quiet=jax.process_index() != 0, highlight=False, soft_wrap=True)
        self._bar = Progress(
            TextColumn("{task.description}"),
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

    def header(self, state: TrainState, mesh: Mesh, first_step: int) -> None:
        """Prints devices, mesh, parameters, batch and where things go."""
        c, show = self._config, self._console.print
        kind = jax.devices()[0].device_kind
        shape = ", ".join(f"{axis}={size}" for axis, size in mesh.shape.items())
        show(f"devices: {jax.device_count()} x {kind} in {jax.process_count()} processes ({shape})")
        show(_parameter_table(state.params))
        micro = c.batch_size // c.accumulation
        show(
            f"batch: {c.batch_size} sequences of {c.model.context_length} tokens "
            f"({c.batch_size * c.model.context_length:,} tokens a step; "
            f"{c.accumulation} x {micro}, {micro // batch_shards(mesh)} per device)"
        )
        show(f"data: {c.data}   run: {c.run} (metrics.jsonl, tensorboard/, checkpoints/)")
        if first_step:
            show(f"resumed at step {first_step}, next example {first_step * c.batch_size}")
        self._task = self._bar.add_task("training", total=c.steps, completed=first_step)
        self._bar.start()

    def note(self, line: str) -> None:
        """Prints a line of its own."""
        self._console.print(line)

    def train(self, step: int, loss: float, tokens_per_second: float) -> None:
        """Shows a logged training step."""
        rate = f"{tokens_per_second:,.0f} tokens/s"
        if not self._console.is_terminal:
            left = (self._config.steps - step) * self._tokens_per_step / tokens_per_second
            self._console.print(f"step {step}  loss {loss:.4f}  {rate}  {left:.0f} s left")
        self._bar.update(self._task, completed=step, description=f"loss {loss:.4f}  {rate}")

    def validation(self, step: int, values: dict[str, Any]) -> None:
        """Shows an evaluation."""
        self._console.print(
            f"step {step}  validation loss {values['loss']:.4f}  "
            f"perplexity {values['perplexity']:.3f}  bits/byte {values['bits_per_byte']:.4f}  "
            f"mean entropy {values['head_entropy'].mean():.3f} nats"
        )

    @property
    def _tokens_per_step(self) -> int:
        return self._config.batch_size * self._config.model.context_length


def _parameter_table(params: Any) -> Table:
    table = Table("parameter", "shape", "count", box=None, pad_edge=False)
    leaves = jax.tree_util.tree_leaves_with_path(params)
    for path, x in leaves:
        name = "/".join(p.key for p in path)
        table.add_row(name, " x ".join(map(str, x.shape)) or "scalar", f"{x.size:,}")
    table.add_row("total", "", f"{sum(math.prod(x.shape) for _, x in leaves):,}")
    return table
