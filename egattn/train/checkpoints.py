"""Checkpoints: the train state and the data's position, through Orbax."""

import math
import os
import shutil

import jax
import numpy as np
import orbax.checkpoint as ocp
from jax.experimental import multihost_utils
from jax.sharding import Mesh

from egattn.sharding import state_sharding
from egattn.train.config import TrainConfig
from egattn.train.integrity import damage, is_sealed, seal
from egattn.train.step import TrainState, abstract


class Checkpoints:
    """Numbered checkpoints of one run directory; a context manager that waits for pending saves.

    A checkpoint counts once its checksums are written, which is the last thing that a save does;
    anything else, and anything damaged since, is passed over.
    """

    def __init__(self, config: TrainConfig, mesh: Mesh, *, read_only: bool = False):
        self.directory = (config.run / "checkpoints").resolve()
        self._config, self._mesh = config, mesh
        # On CPU a save in the background could still be reading buffers that the next step, whose
        # state is donated, overwrites.
        self._background = jax.default_backend() != "cpu"
        sealing = ocp.AsyncOptions(post_finalization_callback=self._seal)
        options = ocp.CheckpointManagerOptions(
            max_to_keep=config.keep_checkpoints,
            create=not read_only,
            read_only=read_only,
            # What a killed save left behind.
            cleanup_tmp_directories=not read_only,
            enable_async_checkpointing=self._background,
            async_options=sealing if self._background else None,
        )
        self._manager = ocp.CheckpointManager(self.directory, options=options)

    def __enter__(self):
        """Returns itself."""
        return self

    def __exit__(self, *_):
        """Waits for the last save."""
        self._manager.close()

    def newest(self, below: float = math.inf) -> tuple[int | None, dict[int, str]]:
        """Newest intact step if there is one, and for each newer one what is wrong with it.

        Args:
          below: Only steps below this one count.

        Raises:
          FileNotFoundError: If there were completed checkpoints, and none is intact.
        """
        skipped: dict[int, str] = {}
        steps = sorted((step for step in self._steps() if step < below), reverse=True)
        for step in steps:
            problem = damage(self.directory / str(step))
            if problem is None:
                return step, skipped
            skipped[step] = f"checkpoint {step} is not intact: {problem}"
        if any(is_sealed(self.directory / str(step)) for step in steps):
            first = next(iter(skipped.values()))
            raise FileNotFoundError(f"no checkpoint in {self.directory} is intact: {first}")
        return None, skipped

    def resume(self) -> tuple[int, list[str]]:
        """As `newest`, 0 for None, for the trainer: the newer ones are gone, each line says where.

        What a killed save left is removed. A checkpoint damaged since goes to RUN/damaged.
        """
        step, skipped = 0, []
        if jax.process_index() == 0:
            newest, problems = self.newest()
            step = newest or 0
            skipped = [f"{line}; {self._set_aside(other)}" for other, line in problems.items()]
        if jax.process_count() > 1:
            step = int(multihost_utils.broadcast_one_to_all(np.int32(step)))
        self._manager.reload()
        return step, skipped

    def _set_aside(self, step: int) -> str:
        path = self.directory / str(step)
        if not is_sealed(path):
            shutil.rmtree(path)
            return "removed"
        target = self.directory.with_name("damaged") / str(step)
        shutil.rmtree(target, ignore_errors=True)
        target.parent.mkdir(exist_ok=True)
        os.replace(path, target)
        return f"moved to {target}"

    def save(self, step: int, state: TrainState) -> None:
        """Saves the state after `step` steps; the data position is that of the next batch.

        Raises:
          OSError: If there is no room for it; nothing has been written then.
        """
        need, free = _bytes(state), shutil.disk_usage(self.directory).free
        if free < need:
            raise OSError(
                f"no space left for checkpoint {step} in {self.directory}: about {need:,} bytes "
                f"needed, {free:,} free"
            )
        items = ocp.args.Composite(
            state=ocp.args.StandardSave(state),
            data=ocp.args.JsonSave({"next_index": step * self._config.batch_size}),
        )
        self._manager.save(step, args=items)
        if not self._background:
            self._seal()

    def restore(self, step: int) -> TrainState:
        """Returns the state after `step` steps, laid out for this run's mesh, whatever it was.

        Raises:
          FileNotFoundError: If there is no such checkpoint, or it is not intact.
        """
        have = sorted(self._steps())
        if step not in have:
            listed = ", ".join(map(str, have)) or "none"
            raise FileNotFoundError(f"no checkpoint {step} in {self.directory} (have: {listed})")
        problem = damage(self.directory / str(step))
        if problem is not None:
            raise FileNotFoundError(f"checkpoint {self.directory / str(step)}: {problem}")
        shapes = abstract(self._config)
        target = jax.tree.map(
            lambda x, s: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s),
            shapes,
            state_sharding(self._mesh, shapes),
        )
        items = ocp.args.Composite(state=ocp.args.StandardRestore(target))
        return self._manager.restore(step, args=items)["state"]

    def _steps(self) -> list[int]:
        if not self.directory.is_dir():
            return []
        return [int(path.name) for path in self.directory.iterdir() if path.name.isdigit()]

    def _seal(self) -> None:
        if jax.process_index() != 0:
            return
        for step in self._steps():
            if not is_sealed(self.directory / str(step)):
                seal(self.directory / str(step))


def _bytes(state: TrainState) -> int:
    """What a checkpoint of this state takes on disk, generously."""
    return 2**16 + sum(x.nbytes for x in jax.tree.leaves(state)) * 21 // 20
