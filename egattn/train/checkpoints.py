"""Checkpoints: the train state and the data's position, through Orbax."""

import jax
import orbax.checkpoint as ocp
from jax.sharding import Mesh

from egattn.sharding import state_sharding
from egattn.train.config import TrainConfig
from egattn.train.step import TrainState, abstract


class Checkpoints:
    """Numbered checkpoints of one run directory; a context manager that waits for pending saves."""

    def __init__(self, config: TrainConfig, mesh: Mesh, *, read_only: bool = False):
        self.directory = (config.run / "checkpoints").resolve()
        self._config, self._mesh = config, mesh
        options = ocp.CheckpointManagerOptions(
            max_to_keep=config.keep_checkpoints,
            create=not read_only,
            read_only=read_only,
            # On CPU a save in the background could still be reading buffers that the next step,
            # whose state is donated, overwrites.
            enable_async_checkpointing=jax.default_backend() != "cpu",
        )
        self._manager = ocp.CheckpointManager(self.directory, options=options)

    def __enter__(self):
        """Returns itself."""
        return self

    def __exit__(self, *_):
        """Waits for the last save."""
        self._manager.close()

    @property
    def latest(self) -> int | None:
        """Newest completed step."""
        return self._manager.latest_step()

    def save(self, step: int, state: TrainState) -> None:
        """Saves the state after `step` steps; the data position is that of the next batch."""
        items = ocp.args.Composite(
            state=ocp.args.StandardSave(state),
            data=ocp.args.JsonSave({"next_index": step * self._config.batch_size}),
        )
        self._manager.save(step, args=items)

    def restore(self, step: int | None = None) -> tuple[TrainState, int]:
        """Returns the state and the index of the next example.

        The state is laid out for this run's mesh, whatever mesh it was saved from.

        Args:
          step: Which checkpoint; None means the newest.

        Raises:
          FileNotFoundError: If there is none.
        """
        steps = self._manager.all_steps()
        if step is None and steps:
            step = max(steps)
        if step is None or step not in steps:
            have = ", ".join(map(str, sorted(steps))) or "none"
            raise FileNotFoundError(
                f"no checkpoint {'' if step is None else step} in {self.directory} (have: {have})"
            )
        shapes = abstract(self._config)
        target = jax.tree.map(
            lambda x, s: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s),
            shapes,
            state_sharding(self._mesh, shapes),
        )
        items = ocp.args.Composite(
            state=ocp.args.StandardRestore(target), data=ocp.args.JsonRestore()
        )
        restored = self._manager.restore(step, args=items)
        return restored["state"], restored["data"]["next_index"]
