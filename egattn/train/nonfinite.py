"""Steps whose numbers are not finite: written down for replay, and left out within a budget."""

import math
from typing import Any

import jax
import numpy as np

from egattn.data import Manifest, windows_of_batch
from egattn.train.checkpoints import Checkpoints
from egattn.train.config import TrainConfig
from egattn.train.records import append_line, drop_after, read_lines

FILE = "nonfinite.jsonl"
"""In the run directory: one record per step that was not finite."""


def is_finite(metrics: dict[str, Any]) -> bool:
    """Whether a step's loss, gradient and attention entropies all are; metrics on the host."""
    numbers = metrics["loss"], metrics["gradient_norm"]
    return all(map(math.isfinite, numbers)) and not metrics["nonfinite"].any()


class Nonfinite:
    """Judges the steps of a run that were not finite."""

    def __init__(self, config: TrainConfig, manifest: Manifest, checkpoints: Checkpoints):
        self._config, self._manifest, self._checkpoints = config, manifest, checkpoints
        self._path = config.run / FILE
        self.skipped = 0
        """Steps left out so far."""

    def resume(self, step: int) -> None:
        """Forgets what came after a step."""
        if jax.process_index() == 0:
            drop_after(self._path, step)
        past = [record for record in read_lines(self._path) if record["step"] <= step]
        self.skipped = sum(record["action"] == "skipped" for record in past)

    def found(self, step: int, metrics: dict[str, np.ndarray]) -> str:
        """Writes the step down; returns a line that says so.

        Raises:
          FloatingPointError: If the budget `TrainConfig.skip_nonfinite` is used up.
        """
        c, stops = self._config, self.skipped >= self._config.skip_nonfinite
        windows = windows_of_batch(
            self._manifest, "train", batch_size=c.batch_size, seed=c.seed, step=step
        )
        record = {
            "step": step,
            "action": "stopped" if stops else "skipped",
            **{name: metrics[name] for name in ("loss", "gradient_norm", "nonfinite")},
            "first_example": (step - 1) * c.batch_size,
            "windows": windows,
        }
        if jax.process_index() == 0:
            with self._path.open("a", encoding="utf-8") as file:
                append_line(file, record)
        what = _diagnosis(metrics)
        if not stops:
            self.skipped += 1
            return f"step {step} left out ({self.skipped} of {c.skip_nonfinite}): {what}"
        good, _ = self._checkpoints.newest()
        saved = f"{self._checkpoints.directory / str(good)}" if good else "none"
        raise FloatingPointError(
            f"training stopped at step {step}: {what}; `egattn replay {c.run} --step {step}` "
            f"repeats it; last good checkpoint: {saved}"
        )


def _diagnosis(metrics: dict[str, np.ndarray]) -> str:
    bad = ~np.isfinite(metrics["head_entropy"])
    where = "; ".join(
        f"layer {layer} heads {', '.join(map(str, np.flatnonzero(row)))} "
        f"({metrics['nonfinite'][layer]} rows)"
        for layer, row in enumerate(bad)
        if row.any()
    )
    return (
        f"loss is {metrics['loss']}, gradient norm {metrics['gradient_norm']}, attention entropy "
        f"{'is not finite in ' + where if where else 'is finite'}"
    )
