"""Repeats one training step of a run, from the newest checkpoint before it."""

import dataclasses
import math
from pathlib import Path
from typing import Any

import jax
import numpy as np
import tyro
from jax.sharding import Mesh

from egattn.data import batches, windows_of_batch
from egattn.run import RunDirectory, restore
from egattn.run.arrays import settle
from egattn.run.integrity import is_sealed
from egattn.run.lines import read_lines
from egattn.sharding import check_batch, make_mesh
from egattn.train.config import TrainConfig
from egattn.train.evaluate import with_data
from egattn.train.initialise import first_state
from egattn.train.step import TrainState, device_batch, make_train_step, target


@dataclasses.dataclass(frozen=True)
class ReplayConfig:
    """Repeats a training step and compares it with what the run recorded."""

    run: tyro.conf.Positional[Path]
    """Run directory; nothing in it is changed."""
    step: int
    """Step to repeat, from 1 on."""
    data: Path | None = None
    """Directory written by `egattn prepare`; default: the one the run was trained on."""
    mesh: str | None = None
    """Devices per mesh axis, e.g. replica=2,fsdp=4; default: as the run was trained."""
    json: bool = False
    """Print one JSON object instead of text."""


def replay(config: ReplayConfig) -> dict[str, Any]:
    """Repeats a step.

    Returns:
      `step`; `checkpoint`, the step it was repeated from, 0 for the start; `loss` (nats),
      `penalty`, `gradient_norm`, `head_entropy` [L, H] (nats), `nonfinite` [L] (rows whose entropy
      is not finite); `windows` of the training split in the batch; `recorded`, the loss and the
      gradient norm in the run's records if it has the step, else None; `difference`, the largest
      relative difference to them, 0 where both are not finite, infinite where only one is.

    Raises:
      FileNotFoundError: If it is not a run directory.
      ValueError: If the step, the data or the mesh do not fit the run.
    """
    run, manifest = with_data(TrainConfig.read(config.run), config.data)
    run = dataclasses.replace(run, mesh=config.mesh or run.mesh)
    if not 1 <= config.step <= run.steps:
        raise ValueError(f"step must lie within 1 to {run.steps}, got {config.step}")
    metrics, first = _repeat(run, manifest, config.step)
    recorded = _recorded(config.run, config.step)
    return {
        "step": config.step,
        "checkpoint": first,
        **metrics,
        "windows": windows_of_batch(
            manifest, "train", batch_size=run.batch_size, seed=run.seed, step=config.step
        ),
        "recorded": recorded,
        "difference": _difference(metrics, recorded) if recorded else None,
    }


def _repeat(run: TrainConfig, manifest, step: int) -> tuple[dict[str, np.ndarray], int]:
    """Metrics of a step, and the step that it was reached from."""
    mesh = make_mesh(run.mesh)
    check_batch(mesh, run.batch_size // run.accumulation, run.model.context_length)
    first, state = _state_before(run, mesh, step)
    source = batches(
        run.data,
        manifest,
        "train",
        batch_size=run.batch_size,
        context_length=run.model.context_length,
        seed=run.seed,
        start_index=first * run.batch_size,
    )
    train_step = make_train_step(run, mesh, document_end=manifest.document_end)
    metrics = {}
    for _ in range(first, step):
        state, metrics = train_step(state, device_batch(run, mesh, next(source)))
        settle(metrics)
    return jax.device_get(metrics), first


def _state_before(run: TrainConfig, mesh: Mesh, step: int) -> tuple[int, TrainState]:
    """The newest one that there is, and its step."""
    directory, wanted = RunDirectory(run.run), target(run, mesh)

    def are_saved() -> bool:
        saved = (s for s in directory.saved_steps() if s < step)
        return any(is_sealed(directory.checkpoint(s)) for s in saved)

    if are_saved():
        try:
            return directory.read_checkpoint(lambda path: restore(path, wanted), below=step)
        except FileNotFoundError:
            # A run that goes on may have deleted the last of them meanwhile.
            if are_saved():
                raise
    return 0, first_state(run, mesh)[0]


def _recorded(run: Path, step: int) -> dict[str, float] | None:
    directory = RunDirectory(run)
    for path in (directory.metrics, directory.nonfinite):
        for record in read_lines(path):
            if record.get("step") == step and "gradient_norm" in record:
                numbers = {n: record.get(n) for n in ("loss", "gradient_norm")}
                return {n: math.nan if x is None else float(x) for n, x in numbers.items()}
    return None


def _difference(metrics: dict[str, np.ndarray], recorded: dict[str, float]) -> float:
    worst = 0.0
    for name, old in recorded.items():
        new = float(metrics[name])
        if math.isfinite(new) and math.isfinite(old):
            worst = max(worst, abs(new - old) / max(abs(old), 1e-30))
        elif math.isfinite(new) or math.isfinite(old):
            return math.inf
    return worst


def describe(values: dict[str, Any]) -> str:
    """Returns the values as text."""
    first = f"checkpoint {values['checkpoint']}" if values["checkpoint"] else "the start"
    bad = [f"layer {i}: {n:,}" for i, n in enumerate(values["nonfinite"]) if n]
    rows = f"entropy rows that are not finite: {', '.join(bad)}" if bad else "entropies are finite"
    judgement = {None: "the run did not record this step", 0.0: "as recorded, to the bit"}
    difference = values["difference"]
    other = f"relative difference to the record: {difference:.1e}" if difference else ""
    return "\n".join(
        [
            f"step {values['step']}, repeated from {first}",
            f"  loss {values['loss']:.6g}  gradient norm {values['gradient_norm']:.6g}",
            f"  {rows}",
            f"  windows of the training split: {', '.join(map(str, values['windows']))}",
            f"  {judgement.get(difference, other)}",
        ]
    )
