"""A checkpoint's variables alone: what the network is, without what training it needs."""

from pathlib import Path
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp

from egattn.model.linear import SPECTRAL
from egattn.run import RunDirectory
from egattn.run.checkpoints import plainly_named


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
    with plainly_named(checkpoint / "state") as place:
        tree: Any = ocp.PyTreeCheckpointHandler().metadata(place).tree
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
    with plainly_named(checkpoint / "state") as place:
        return ocp.PyTreeCheckpointHandler().restore(place, args=items)
