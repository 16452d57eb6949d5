"""Checkpoints: a run's state and its data's position, through Orbax."""

import concurrent.futures
import contextlib
import glob
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import jax
import orbax.checkpoint as ocp

from egattn.run.arrays import copied
from egattn.run.directory import RunDirectory
from egattn.run.integrity import removable, seal

# Size of the files of a checkpoint, about: several are written at a time.
_FILE_BYTES = 2**27


def laid_out(shapes: Any, shardings: Any) -> Any:
    """Returns what `restore` takes as its target.

    Args:
      shapes: Arrays, or their shapes and dtypes.
      shardings: Where each is to live, nested in the same way.
    """
    return jax.tree.map(
        lambda x, s: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s), shapes, shardings
    )


def restore(checkpoint: Path, target: Any) -> Any:
    """Reads the state of a checkpoint, laid out as the target says, whatever it was.

    Args:
      checkpoint: Directory of one checkpoint, see `RunDirectory.read_checkpoint`.
      target: `jax.ShapeDtypeStruct` of every array, with its sharding, nested as the state.
    """
    layout = ocp.checkpoint_utils.construct_restore_args(target)
    items: Any = ocp.args.PyTreeRestore(target, restore_args=layout)
    with plainly_named(checkpoint / "state") as place:
        return _handler().restore(place, args=items)


@contextlib.contextmanager
def plainly_named(directory: Path) -> Iterator[Any]:
    """Gives a name of a directory that Orbax can use: it takes brackets in one for a pattern.

    Yields:
      The path; Orbax declares a type of its own and takes every one.
    """
    path = directory.resolve()
    if glob.escape(str(path)) == str(path):
        yield path
        return
    with tempfile.TemporaryDirectory(prefix="egattn-") as here:
        link = Path(here) / "link"
        link.symlink_to(path)
        yield link


def _handler() -> ocp.PyTreeCheckpointHandler:
    # Compression saves 8 % of the bytes and doubles the time.
    return ocp.PyTreeCheckpointHandler(use_compression=False, multiprocessing_options=_processes())


def _processes() -> ocp.options.MultiprocessingOptions:
    processes = ocp.options.MultiprocessingOptions()
    if jax.process_count() > 1:
        # Named processes meet through the coordinator. Otherwise they would meet on the devices,
        # from a thread beside the one that trains there.
        processes.active_processes = set(range(jax.process_count()))
        processes.barrier_sync_key_prefix = "checkpoints"
    return processes


class Saver:
    """Writes a run's checkpoints; a context manager that waits for pending saves.

    Saving goes on in the background, from a copy of the state, and one save at a time. A checkpoint
    counts once its checksums are written, which is the last thing that a save does; anything else,
    and anything damaged since, is passed over.
    """

    def __init__(
        self, directory: RunDirectory, keep: int, saved: Callable[[int], None] = lambda step: None
    ):
        """Removes what a killed save has left.

        Args:
          directory: The run's.
          keep: Newest checkpoints kept.
          saved: Told each step whose checkpoint is complete, in the background.
        """
        self._directory, self._keep, self._saved = directory, keep, saved
        self._thread = concurrent.futures.ThreadPoolExecutor(1)
        self._deleter = concurrent.futures.ThreadPoolExecutor(1)
        self._pending: concurrent.futures.Future | None = None
        directory.checkpoints.mkdir(exist_ok=True)
        processes = _processes()
        self._stack = contextlib.ExitStack()
        self._manager = _Manager(
            self._stack.enter_context(plainly_named(directory.checkpoints)),
            item_handlers={
                "state": _handler(),
                "data": ocp.JsonCheckpointHandler(multiprocessing_options=processes),
            },
            options=ocp.CheckpointManagerOptions(
                create=False,
                cleanup_tmp_directories=True,
                enable_async_checkpointing=False,
                multiprocessing_options=processes,
            ),
        )

    def __enter__(self):
        """Returns itself."""
        return self

    def __exit__(self, *_):
        """Waits for the last save; raises what it raised."""
        with self._stack, contextlib.closing(self._manager):
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

    def newest(self) -> int | None:
        """Newest intact step, once a pending save is complete."""
        self._wait()
        return self._directory.newest()[0]

    def get_ready(self, state: Any) -> None:
        """Has the host's memory for saves of this state allocated, in the background.

        On GPUs it is pinned memory: whoever allocates it stops the device, for a second. So better
        while there is nothing to stop.
        """
        if jax.default_backend() == "gpu":
            copy = copied(state)
            pinned = jax.tree.map(lambda x: x.sharding.with_memory_kind("pinned_host"), copy)
            self._thread.submit(lambda: jax.block_until_ready(jax.device_put(copy, pinned)))

    def copy(self, state: Any) -> Any:
        """Returns a copy to save, which later steps, whose state is donated, cannot overwrite.

        It is made on the devices, where that takes a millisecond, if they have room for it. There
        is one copy at a time: this waits for the save before, and raises what that raised.
        """
        self._wait()
        return copied(state)

    def save(self, step: int, copy: Any, position: dict[str, Any]) -> None:
        """Begins to save the state after `step` steps.

        Args:
          step: Steps done.
          copy: What `copy` returned.
          position: Where the data go on, plain values.

        Raises:
          OSError: If there is no room for it; nothing has been written then.
        """
        where = self._directory.checkpoints
        need, free = _bytes(copy), shutil.disk_usage(where).free
        if free < need:
            raise OSError(
                f"no space left for checkpoint {step} in {where}: about {need:,} bytes needed, "
                f"{free:,} free"
            )
        self._pending = self._thread.submit(self._write, step, copy, position)

    def _write(self, step: int, state: Any, position: dict[str, Any]) -> None:
        items = ocp.args.Composite(
            state=ocp.args.PyTreeSave(state, ocdbt_target_data_file_size=_FILE_BYTES),
            data=ocp.args.JsonSave(position),
        )
        self._manager.save(step, args=items)
        if jax.process_index() == 0:
            seal(self._directory.checkpoint(step))
            self._saved(step)
            # Only now, so that there is an intact one at any moment.
            self._deleter.submit(self._delete_old, step)

    def _delete_old(self, newest: int) -> None:
        """Deletes all but the last ones up to the newest complete one.

        What is being read, or cannot be deleted, is tried again after the next save.
        """
        doomed = self._directory.path.resolve() / "deleting"
        doomed.mkdir(exist_ok=True)
        complete = [step for step in self._directory.saved_steps() if step <= newest]
        for step in complete[: -self._keep]:
            checkpoint = self._directory.checkpoint(step)
            with contextlib.suppress(OSError), removable(checkpoint) as free:
                if free:
                    os.replace(checkpoint, doomed / str(step))
        shutil.rmtree(doomed, ignore_errors=True)


class _Manager(ocp.CheckpointManager):
    """Does not ask whether to stop for preemption.

    Of several processes JAX expects that question once a step and in order, as the training loop
    asks it; a save in the background would ask about steps long past, and none would ever stop.
    """

    def reached_preemption(self, step: int) -> bool:
        return False


def _bytes(state: Any) -> int:
    """What a checkpoint of this state takes on disk, generously."""
    return 2**16 + sum(x.nbytes for x in jax.tree.leaves(state)) * 21 // 20
