"""Several processes, one program: joining the other hosts of a job, and agreeing with them."""

import contextlib
import dataclasses
import importlib.metadata
import json
import time
from collections.abc import Callable, Iterator
from typing import Any, TypeVar, cast

import jax
import numpy as np
from jax.experimental import multihost_utils

from egattn._config import LOCAL, shared_values
from egattn.run.signals import StopRequest, say

_T = TypeVar("_T")
# What JAX and the libraries below say of a process that does not answer.
_LOST = (
    *("UNAVAILABLE", "DEADLINE_EXCEEDED", "ABORTED", "CANCELLED", "INTERNAL"),
    *("Gloo", "NCCL", "onnection", "heartbeat"),
)


@dataclasses.dataclass(frozen=True)
class DistributedConfig:
    """The other processes of the job; all run the same command."""

    enabled: bool = False
    """Join them, found from the environment: TPU pods, SLURM, Open MPI, Kubernetes."""
    coordinator: str | None = None
    """Address and port of process 0, where the environment does not tell."""
    num_processes: int | None = None
    """Processes of the job, where the environment does not tell."""
    process_id: int | None = dataclasses.field(default=None, metadata=LOCAL)
    """This process, from 0 on, where the environment does not tell."""
    join_timeout: int = 300
    """Seconds to wait for all processes to join."""
    heartbeat_timeout: int = 100
    """Seconds after which a process that gives no sign of life ends the job."""

    def __post_init__(self):
        """Checks the values."""
        told = (self.coordinator, self.num_processes, self.process_id)
        if None in told and told != (None, None, None):
            raise ValueError(
                f"distributed coordinator, num_processes and process_id go together, got {told}"
            )
        processes = 1 if self.num_processes is None else self.num_processes
        if not 1 <= processes < 2**31:
            raise ValueError(
                f"distributed num_processes must lie within 1 to 2^31, got {processes}"
            )
        if not 0 <= (self.process_id or 0) < processes:
            raise ValueError(
                f"distributed process_id must lie within 0 to {processes - 1}, "
                f"got {self.process_id}"
            )
        for name in ("join_timeout", "heartbeat_timeout"):
            if not 1 <= getattr(self, name) < 2**31:
                raise ValueError(
                    f"distributed {name} must lie within 1 to 2^31, got {getattr(self, name)}"
                )


def join(config: DistributedConfig, stop: StopRequest) -> None:
    """Joins the other processes, unless this one is alone or has joined; before anything else.

    Raises:
      ValueError: If the environment does not tell who they are.
    """
    wanted = config.enabled or config.coordinator is not None
    if wanted and not jax.distributed.is_initialized():
        _join(config)
    if jax.process_count() > 1:
        stop.share()


def _join(config: DistributedConfig) -> None:
    # JAX ends a process that waits in vain, with a message that does not say what it waited for.
    say(f"joining the other processes, for at most {config.join_timeout} s", error=True)
    try:
        jax.distributed.initialize(
            config.coordinator,
            config.num_processes,
            config.process_id,
            initialization_timeout=config.join_timeout,
            heartbeat_timeout_seconds=config.heartbeat_timeout,
        )
    except ValueError as error:
        raise ValueError(
            f"no job found in the environment ({error}); tell it by --distributed.coordinator, "
            "--distributed.num-processes and --distributed.process-id"
        ) from error


@contextlib.contextmanager
def together(config: DistributedConfig) -> Iterator[None]:
    """Work with the other processes: if one is lost, waits until JAX has named it.

    Raises:
      ConnectionError: If JAX does not name it, and end this process, within the heartbeat timeout.
    """
    try:
        yield
    # Some releases of JAX raise a plain ValueError.
    except (jax.errors.JaxRuntimeError, ValueError) as error:
        if jax.process_count() == 1 or not any(sign in str(error) for sign in _LOST):
            raise
        reason = str(error).splitlines()[0]
        limit = config.heartbeat_timeout
        say(f"lost another process ({reason}); its name follows within {limit} s")
        time.sleep(limit + 10)
        raise ConnectionError(f"lost another process: {reason}") from error


def agreed(make: Callable[[], _T], config: Callable[[_T], Any]) -> _T:
    """Makes the same thing on all processes, or fails on all of them.

    Where one cannot make it, or the configs differ, the others would wait for it in vain, or go on
    with numbers of two runs.

    Args:
      make: Makes it; may raise ValueError or OSError.
      config: Tells its config, a dataclass; fields marked as local may differ.

    Returns:
      What `make` returned.

    Raises:
      ValueError: If another process failed, or configs or versions differ: names each field.
    """
    if jax.process_count() == 1:
        return make()
    made, failure = None, None
    try:
        made = make()
        told = {name: str(value) for name, value in shared_values(config(made))}
        told |= {f"{name}'s version": importlib.metadata.version(name) for name in ("jax", "flax")}
    except (ValueError, OSError) as error:
        failure, told = error, {"error": str(error)}
    everybody = _gather(told)
    if failure is not None:
        raise failure
    failed = [f"process {i}: {t['error']}" for i, t in enumerate(everybody) if "error" in t]
    if failed:
        raise ValueError(f"another process failed: {'; '.join(failed)}")
    lines = _differences(everybody)
    if lines:
        raise ValueError(f"the processes differ: {'; '.join(lines)}")
    return cast(_T, made)


def _gather(told: dict[str, str]) -> list[dict[str, str]]:
    """What each process tells, in their order."""
    text = np.frombuffer(json.dumps(told).encode(), np.uint8)
    sizes = multihost_utils.process_allgather(np.int32(text.size))
    padded = np.zeros(sizes.max(), np.uint8)
    padded[: text.size] = text
    rows = np.asarray(multihost_utils.process_allgather(padded)).astype(np.uint8)
    return [json.loads(row[:n].tobytes()) for row, n in zip(rows, sizes, strict=True)]


def _differences(everybody: list[dict[str, str]]) -> list[str]:
    lines = []
    for name in dict.fromkeys(name for told in everybody for name in told):
        values = [told.get(name) for told in everybody]
        if len(set(values)) > 1:
            each = ", ".join(f"{value} (process {i})" for i, value in enumerate(values))
            lines.append(f"{name}: {each}")
    return lines


def barrier(name: str) -> None:
    """Waits for all processes to come to the same place."""
    if jax.process_count() > 1:
        multihost_utils.sync_global_devices(name)


def stops(stop: StopRequest, step: int) -> bool:
    """Whether to stop after this step; the same on all processes."""
    if jax.process_count() == 1:
        return stop.name is not None
    if not multihost_utils.reached_preemption_sync_point(step):
        return False
    stop.name = stop.name or "SIGTERM"
    return True
