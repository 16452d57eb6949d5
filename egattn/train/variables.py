"""A checkpoint's variables alone: what the network is, without what training it needs."""

from pathlib import Path
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp

from egattn.model.linear import SPECTRAL
from egattn.run import RunDirectory


def load_variables(run: Path, step: int | None = None) -> tuple[int, dict[str, Any]]:
    """Returns step and variables of a run's checkpoint, by default the newest intact one.

    NumPy arrays, nested as `Decoder.init` returns them. Says on stderr which newer checkpoints are
    not intact.

    Raises:
      FileNotFoundError: If there is no such checkpoint.
    """
    return RunDirectory(run).read_checkpoint(read_variables, step)


def describe_variables(checkpoint: Path) -> dict[str, Any]:
    """Returns name, shape and type of each variable, nested as `Decoder.init` returns them.

    No array is read, and the optimiser's are not even described.

    Args:
      checkpoint: Directory of one checkpoint.
    """
    tree: Any = ocp.PyTreeCheckpointHandler().metadata(_state(checkpoint)).tree
    return {name: tree.get(name, {}) for name in ("params", SPECTRAL)}


def read_variables(checkpoint: Path) -> dict[str, Any]:
    """Returns each variable as a NumPy array, nested as `Decoder.init` returns them.

    The optimiser's state stays on disk.

    Args:
      checkpoint: Directory of one checkpoint.
    """
    wanted = describe_variables(checkpoint)
    form = jax.tree.map(lambda _: ocp.RestoreArgs(restore_type=np.ndarray), wanted)
    items = ocp.args.PyTreeRestore(wanted, restore_args=form, partial_restore=True)
    return ocp.PyTreeCheckpointHandler().restore(_state(checkpoint), args=items)


def _state(checkpoint: Path) -> Any:
    """Any, because Orbax declares a path type of its own and takes every one."""
    return checkpoint.resolve() / "state"
