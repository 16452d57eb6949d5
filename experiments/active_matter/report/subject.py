"""A run as the report sees it: its records, its evaluation, and fields on held-out snapshots."""

import dataclasses
import functools
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np

from egattn.flow import Field, velocity
from egattn.report.runs import labels
from egattn.run import RunDirectory
from egattn.run.lines import read_lines
from experiments.active_matter.config import TrainConfig
from experiments.active_matter.evaluation import SAMPLES, evaluation, held_out
from experiments.active_matter.fokker_planck import Ring, Solution, solve
from experiments.active_matter.report.fields import Fields, exact, measured
from experiments.active_matter.systems import System
from experiments.active_matter.trained import load


@dataclasses.dataclass(frozen=True, eq=False)
class Subject:
    """What is drawn and said of one run."""

    label: str
    """Name of the directory, distinct among the runs."""
    path: Path
    """The directory."""
    config: TrainConfig
    """What the training was told."""
    step: int
    """How many steps it has taken."""
    records: list[dict[str, Any]]
    """Lines of `metrics.jsonl`."""
    values: dict[str, Any]
    """As `evaluate` prints them."""
    system: System
    """The system."""
    velocity: Field
    """v of one state, as learned."""
    snapshots: np.ndarray
    """Held-out snapshots [S, 2, N, d]."""
    ours: Fields
    """Learned fields on them, or on the first ones where exact divergences are dear."""
    exact: Fields | None
    """Exact fields on the same, where they are known."""
    solution: Solution | None
    """Of the ring, on a grid."""

    @property
    def exact_velocity(self) -> Field | None:
        """The exact v as a function of a state, where forces are linear."""
        known = self.system.exact
        return None if known is None else velocity(self.system.process, known.score)

    def kind(self, name: str) -> list[dict[str, Any]]:
        """Its records of one kind."""
        return [record for record in self.records if record.get("kind") == name]


@functools.cache
def ring_solution(ring: Ring) -> Solution:
    """A ring's, once for all runs."""
    return solve((800, 240), ring)


def read_subjects(runs: Sequence[Path], samples: int | None, seed: int) -> list[Subject]:
    """Loads runs and evaluates them.

    Args:
      runs: Their directories.
      samples: Held-out snapshots; None for as many as evaluations take.
      seed: Of the snapshots.

    Raises:
      FileNotFoundError: If one is not a run, or has no checkpoint.
      ValueError: If there is none, or one is a run of something else.
    """
    if not runs:
        raise ValueError("expected at least one run directory, got none")
    # All of them before the first takes its time.
    trained = [load(run) for run in runs]
    return [
        _subject(label, run, one, samples, seed)
        for label, run, one in zip(labels(runs), runs, trained, strict=True)
    ]


def _subject(label: str, run: Path, trained: Any, samples: int | None, seed: int) -> Subject:
    name = trained.config.system
    count, differentiated = SAMPLES[name]
    count = count if samples is None else samples
    differentiated = min(differentiated, count)
    z, trajectories = held_out(trained.system, count, seed)
    ring = Ring(trained.config.speed, trained.config.noise)
    known = ring_solution(ring) if name == "ring" else None
    first = jax.numpy.asarray(z[:differentiated])
    return Subject(
        label=label,
        path=run,
        config=trained.config,
        step=trained.step,
        records=list(read_lines(RunDirectory(run).metrics)),
        values=evaluation(trained, z, trajectories, differentiated),
        system=trained.system,
        velocity=trained.velocity,
        snapshots=z,
        ours=measured(trained.system, trained.velocity, first),
        exact=exact(trained.system, known, first),
        solution=known,
    )
