"""A run from its first instruction to its last: read top-down from `execute`."""

import contextlib
import datetime
import importlib.metadata
import time
from collections.abc import Callable, Iterator
from typing import Any

import jax

from egattn.run.checkpoints import Saver, restore
from egattn.run.claim import Claim, claimed
from egattn.run.config import RunConfig
from egattn.run.console import Display
from egattn.run.loop import Loop, Tools
from egattn.run.nonfinite import Nonfinite
from egattn.run.pace import Pace
from egattn.run.processes import agreed, barrier, join, together
from egattn.run.profiler import Profiler
from egattn.run.records import Board, Records
from egattn.run.signals import StopRequest, listening
from egattn.run.task import Task

_PACKAGES = ("egattn", "jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "grain")


def execute(
    config: RunConfig,
    make_task: Callable[[], Task],
    clock: Callable[[], float] = time.perf_counter,
) -> dict[str, Any]:
    """Trains, or goes on training, the run that a task describes.

    Args:
      config: What the run is told; `distributed` says which processes to join.
      make_task: Makes the task, once they have joined.
      clock: In seconds, for the speed.

    Returns:
      The last evaluation; empty if the task has none.

    Raises:
      ValueError: If config, data, devices or the run directory do not fit together; nothing has
        been written then.
      ConnectionError: If another process of the job is lost.
      FloatingPointError: If a step's numbers are not finite more often than allowed.
      MemoryError: If the devices have too little memory.
      Preempted: If a signal came; the run is saved then.
    """
    with listening() as stop:
        stop.resumes = True
        join(config.distributed, stop)
        with together(config.distributed):
            task = agreed(make_task, lambda task: task.config)
            with claimed(task.config) as claim, _memory_in_words(task.describe.memory):
                return _execute(task, claim, stop, clock)


def _execute(
    task: Task, claim: Claim, stop: StopRequest, clock: Callable[[], float]
) -> dict[str, Any]:
    """Takes the first step before anything in the directory is changed."""
    config, first, directory = task.config, claim.step, claim.directory
    state = restore(directory.checkpoint(first), task.target) if first else task.init()
    started = _environment() | task.about(state)
    with contextlib.ExitStack() as stack:
        display = stack.enter_context(Display(config.steps, task.unit, task.units_per_step))
        display.header(task.describe.header(state), first)
        traced = directory.profile, config.profile, first, display.note
        profiler = stack.enter_context(Profiler(*traced))
        pace, source = Pace(first, clock), task.batches(first)
        metrics = None
        if first < config.steps:
            with profiler.step(first + 1):
                state, metrics = task.step(state, next(source))
            jax.block_until_ready(metrics)
        stack.enter_context(stop.keeping())
        lines = claim.begin()
        barrier("begun")
        records = stack.enter_context(Records(directory))
        board = stack.enter_context(Board(directory, first))
        saver = Saver(directory, config.keep_checkpoints, lambda s: records.write("save", s))
        stack.enter_context(saver)
        saver.get_ready(state)
        for line in lines:
            display.note(line)
        records.write("start", None, started)
        nonfinite = Nonfinite(directory, config.skip_nonfinite)
        tools = Tools(records, board, display, saver, nonfinite, profiler, pace, stop)
        return Loop(task, tools, first).run(state, source, metrics)


def _environment() -> dict[str, Any]:
    """Time, versions and devices, for the record of a start."""
    return {
        "time": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "versions": {name: _version(name) for name in _PACKAGES},
        "devices": f"{jax.device_count()} x {jax.devices()[0].device_kind}",
    }


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


@contextlib.contextmanager
def _memory_in_words(advice: str) -> Iterator[None]:
    """Says in one line that there is too little memory.

    Args:
      advice: What takes memory and what saves it.

    Raises:
      MemoryError: In place of what JAX raises.
    """
    try:
        yield
    except jax.errors.JaxRuntimeError as error:
        if "RESOURCE_EXHAUSTED" not in str(error) and "Out of memory" not in str(error):
            raise
        reason = str(error).splitlines()[0]
        raise MemoryError(f"too little memory for {advice} ({reason})") from error
