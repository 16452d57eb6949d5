"""A trained run as functions: what reports and evaluations are made of."""

from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
import orbax.checkpoint as ocp
from jaxtyping import PyTree

from egattn.flow import Field, Process, score_of
from egattn.run import RunDirectory
from egattn.run.checkpoints import plainly_named
from experiments.active_matter.config import EMA, TrainConfig
from experiments.active_matter.networks import Network, field
from experiments.active_matter.objective import velocity_of
from experiments.active_matter.systems import System, make_system
from experiments.active_matter.training import chosen


class Trained(NamedTuple):
    """A system and what a network has learned of it."""

    config: TrainConfig
    """What it was trained with."""
    step: int
    """How many steps."""
    system: System
    """The system."""
    process: Process
    """The system as `egattn.flow` takes it."""
    network: Network
    """The network."""
    params: PyTree
    """Its parameters, averaged as the config says."""
    velocity: Field
    """v of the probability flow, of one state z [2, N, d]."""
    score: Field
    """s, of one state."""


def load(run: Path, step: int | None = None) -> Trained:
    """Reads a run.

    Args:
      run: Its directory.
      step: Which checkpoint; the newest intact one by default.

    Raises:
      FileNotFoundError: If it is not a run, or has no such checkpoint.
      ValueError: If it is a run of something else.
    """
    directory = RunDirectory(run)
    config = directory.read_config(TrainConfig)
    step, (params, averages) = directory.read_checkpoint(_read, step)
    system = make_system(config.of_system())
    network = Network(system, config)
    expected = jax.eval_shape(network.init, jax.random.key(0), _state(system))["params"]
    if jax.tree.map(np.shape, params) != jax.tree.map(np.shape, expected):
        raise ValueError(
            f"{run} has a checkpoint of another system or network than its config says"
        )
    params = chosen(config, params, averages)
    velocity = velocity_of(system, field(network, params))
    score = score_of(system.process, velocity)
    return Trained(config, step, system, system.process, network, params, velocity, score)


def _state(system: System) -> jax.ShapeDtypeStruct:
    shape = (2, system.particles, system.dimensions)
    return jax.ShapeDtypeStruct(shape, np.float32)


def _read(checkpoint: Path) -> tuple[PyTree, list[PyTree]]:
    """The parameters and their averages; what else training needs stays on disk."""
    with plainly_named(checkpoint / "state") as place:
        handler = ocp.PyTreeCheckpointHandler()
        tree: Any = handler.metadata(place).tree
        wanted = {name: tree[name] for name in ("params", "averages")}
        form = jax.tree.map(lambda _: ocp.RestoreArgs(restore_type=np.ndarray), wanted)
        items: Any = ocp.args.PyTreeRestore(wanted, restore_args=form, partial_restore=True)
        found = handler.restore(place, args=items)
    averages = found["averages"]
    return found["params"], [averages[i] for i in range(len(EMA))]
