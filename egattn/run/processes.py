"""Several processes, one program: joining the other hosts of a job."""

import contextlib
import dataclasses
import time
from collections.abc import Iterator

import jax


@dataclasses.dataclass(frozen=True)
class DistributedConfig:
    """The other processes of the job; all run the same command."""

    enabled: bool = False
    """Join them, found from the environment: TPU pods, SLURM, Open MPI, Kubernetes."""
    coordinator: str | None = None
    """Address and port of process 0, where the environment does not tell."""
    num_processes: int | None = None
    """Processes of the job, where the environment does not tell."""
    process_id: int | None = None
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
        if not 0 <= (self.process_id or 0) < (self.num_processes or 1):
            raise ValueError(
                f"distributed process_id must lie within 0 to {(self.num_processes or 1) - 1}, "
                f"got {self.process_id}"
            )
        for name in ("join_timeout", "heartbeat_timeout"):
            if getattr(self, name) < 1:
                raise ValueError(f"distributed {name} must be positive, got {getattr(self, name)}")


def join(config: DistributedConfig) -> None:
    """Joins the other processes, unless this one is alone or has joined; before anything else.

    Raises:
      ValueError: If the environment does not tell who they are.
    """
    wanted = config.enabled or config.coordinator is not None
    if not wanted or jax.distributed.is_initialized():
        return
    # JAX ends a process that waits in vain, with a message that does not say what it waited for.
    print(f"joining the other processes, for at most {config.join_timeout} s", flush=True)
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
    except jax.errors.JaxRuntimeError as error:
        if jax.process_count() == 1:
            raise
        reason = str(error).splitlines()[0]
        limit = config.heartbeat_timeout
        print(f"lost another process ({reason}); its name follows within {limit} s", flush=True)
        time.sleep(limit + 10)
        raise ConnectionError(f"lost another process: {reason}") from error
