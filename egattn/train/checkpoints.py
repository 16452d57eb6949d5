"""Checkpoints: the train state and the data's position, through Orbax."""

import concurrent.futures
import contextlib
import math
import os
import shutil

import jax
import numpy as np
import orbax.checkpoint as ocp
from jax.experimental import multihost_utils
from jax.sharding import Mesh

from egattn.run.integrity import (
    check_intact,
    is_sealed,
    newest_intact,
    saved_steps,
    seal,
)
from egattn.sharding import settle, state_sharding
from egattn.train.config import TrainConfig
from egattn.train.step import TrainState, abstract

# Size of the files of a checkpoint, about: several are written at a time.
_FILE_BYTES = 2**27


class Checkpoints:
    """Numbered checkpoints of one run directory; a context manager that waits for pending saves.

    Saving goes on in the background, from a copy of the state, and one save at a time. A checkpoint
    counts once its checksums are written, which is the last thing that a save does; anything else,
    and anything damaged since, is passed over.
    """

    def __init__(self, config: TrainConfig, mesh: Mesh, *, read_only: bool = False):
        self.directory = (config.run / "checkpoints").resolve()
        self._config, self._mesh = config, mesh
        self._thread = concurrent.futures.ThreadPoolExecutor(1)
        self._deleter = concurrent.futures.ThreadPoolExecutor(1)
        self._pending: concurrent.futures.Future | None = None
        self._manager = self._make_manager(read_only)

    def _make_manager(self, read_only: bool) -> ocp.CheckpointManager:
        processes = ocp.options.MultiprocessingOptions()
        if jax.process_count() > 1:
            # Named processes meet through the coordinator. Otherwise they would meet on the
            # devices, from a thread beside the one that trains there.
            processes.active_processes = set(range(jax.process_count()))
            processes.barrier_sync_key_prefix = "checkpoints"
        if not read_only:
            self._make_directory()
        # Compression saves 8 % of the bytes and doubles the time.
        state = ocp.PyTreeCheckpointHandler(
            use_compression=False, multiprocessing_options=processes
        )
        return _Manager(
            self.directory,
            item_handlers={
                "state": state,
                "data": ocp.JsonCheckpointHandler(multiprocessing_options=processes),
            },
            options=ocp.CheckpointManagerOptions(
                create=False,
                read_only=read_only,
                # What a killed save left behind.
                cleanup_tmp_directories=not read_only,
                enable_async_checkpointing=False,
                multiprocessing_options=processes,
            ),
        )

    def _make_directory(self) -> None:
        """By the process that holds the run, before any other one looks."""
        if jax.process_index() == 0:
            self.directory.mkdir(exist_ok=True)
        if jax.process_count() > 1:
            multihost_utils.sync_global_devices("checkpoints")

    def __enter__(self):
        """Returns itself."""
        return self

    def __exit__(self, *_):
        """Waits for the last save; raises what it raised."""
        with contextlib.closing(self._manager):
            self._thread.shutdown()
            self._deleter.shutdown()
            self._wait()

    def _wait(self) -> None:
        pending, self._pending = self._pending, None
        if pending is not None:
            pending.result()

    def check(self) -> None:
        """Raises what the last save raised, if that is known."""
        if self._pending is not None and self._pending.done():
            self._wait()

    def newest(self, below: float = math.inf) -> tuple[int | None, dict[int, str]]:
        """As `newest_intact`, once a pending save is complete."""
        self._wait()
        return newest_intact(self.directory, below)

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

    def get_ready(self, state: TrainState) -> None:
        """Has the host's memory for saves of this state allocated, in the background.

        On GPUs it is pinned memory: whoever allocates it stops the device, for a second. So better
        while there is nothing to stop.
        """
        if jax.default_backend() == "gpu":
            copy = _copy(state)
            pinned = jax.tree.map(lambda x: x.sharding.with_memory_kind("pinned_host"), copy)
            self._thread.submit(lambda: jax.block_until_ready(jax.device_put(copy, pinned)))

    def copy(self, state: TrainState) -> TrainState:
        """Returns a copy to save, which later steps, whose state is donated, cannot overwrite.

        It is made on the devices, where that takes a millisecond, if they have room for it beside
        all that they have held so far; otherwise on their hosts. There is one copy at a time: this
        waits for the save before, and raises what that raised.
        """
        self._wait()
        copy = _copy(state)
        settle(copy)
        return copy

    def save(self, step: int, copy: TrainState) -> None:
        """Begins to save the state after `step` steps; the data position is that of the next batch.

        Args:
          step: Steps done.
          copy: What `copy` returned.

        Raises:
          OSError: If there is no room for it; nothing has been written then.
        """
        need, free = _bytes(copy), shutil.disk_usage(self.directory).free
        if free < need:
            raise OSError(
                f"no space left for checkpoint {step} in {self.directory}: about {need:,} bytes "
                f"needed, {free:,} free"
            )
        self._pending = self._thread.submit(self._write, step, copy)

    def _write(self, step: int, state: TrainState) -> None:
        items = ocp.args.Composite(
            state=ocp.args.PyTreeSave(state, ocdbt_target_data_file_size=_FILE_BYTES),
            data=ocp.args.JsonSave({"next_index": step * self._config.batch_size}),
        )
        self._manager.save(step, args=items)
        if jax.process_index() == 0:
            seal(self.directory / str(step))
            # Only now, so that there is an intact one at any moment.
            self._deleter.submit(self._delete_old)

    def _delete_old(self) -> None:
        """What cannot be deleted, say because it is being read, is tried again after a save."""
        doomed = self.directory.with_name("deleting")
        doomed.mkdir(exist_ok=True)
        for step in saved_steps(self.directory)[: -self._config.keep_checkpoints]:
            with contextlib.suppress(OSError):
                os.replace(self.directory / str(step), doomed / str(step))
        shutil.rmtree(doomed, ignore_errors=True)

    def restore(self, step: int) -> TrainState:
        """Returns the state after `step` steps, laid out for this run's mesh, whatever it was.

        Raises:
          FileNotFoundError: If there is no such checkpoint, or it is not intact.
        """
        check_intact(self.directory, step)
        shapes = abstract(self._config)
        target = jax.tree.map(
            lambda x, s: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s),
            shapes,
            state_sharding(self._mesh, shapes),
        )
        layout = ocp.checkpoint_utils.construct_restore_args(target)
        items = ocp.args.Composite(state=ocp.args.PyTreeRestore(target, restore_args=layout))
        return self._manager.restore(step, args=items)["state"]


class _Manager(ocp.CheckpointManager):
    """Does not ask whether to stop for preemption.

    Of several processes JAX expects that question once a step and in order, as the training loop
    asks it; a save in the background would ask about steps long past, and none would ever stop.
    """

    def reached_preemption(self, step: int) -> bool:
        return False


def _copy(state: TrainState) -> TrainState:
    layout = jax.tree.map(lambda x: x.sharding, state)
    if _has_room(state):
        return jax.device_put(state, layout, may_alias=False)
    host = jax.tree.map(lambda s: s.with_memory_kind("pinned_host"), layout)
    return jax.block_until_ready(jax.device_put(state, host))


def _has_room(state: TrainState) -> bool:
    """The same on all processes."""
    memory = jax.local_devices()[0].memory_stats()
    if memory is None:
        return True
    need = sum(x.addressable_shards[0].data.nbytes for x in jax.tree.leaves(state))
    room = memory["bytes_limit"] - memory["peak_bytes_in_use"] > need
    if jax.process_count() > 1:
        room = bool(multihost_utils.broadcast_one_to_all(np.bool_(room)))
    return room


def _bytes(state: TrainState) -> int:
    """What a checkpoint of this state takes on disk, generously."""
    return 2**16 + sum(x.nbytes for x in jax.tree.leaves(state)) * 21 // 20
