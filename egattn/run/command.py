"""What every command does: it listens to signals, and says in one line what its user can mend."""

import atexit
import contextlib
import io
import os
import signal
import sys
import traceback
from collections.abc import Iterator
from typing import NoReturn

from egattn.run.signals import Preempted, StopRequest, say, silence


@contextlib.contextmanager
def command_line(name: str, *, ends_process: bool = True) -> Iterator[None]:
    """Work of a command; enter it before importing what takes long.

    A run that a signal stops is saved, and the status 0. Of other errors that a user can cause
    stderr gets one line, or all with EGATTN_TRACEBACK=1, and the process its exit status, see
    docs/running.md. Needs the standard library only.

    Args:
      name: Stands in front of the line.
      ends_process: Whether the process is the command, which listens until it ends.

    Raises:
      SystemExit: In place of such an error.
    """
    _open_streams()
    stop = StopRequest(ends_process=ends_process).__enter__()
    if ends_process:
        # Registered first, so that it runs last.
        atexit.register(stop.ignore)
    try:
        yield
        sys.stdout.flush()
    except Exception as error:
        _end(name, error, stop)
    finally:
        if not ends_process:
            stop.__exit__()


def _open_streams() -> None:
    """Makes printing safe: where a stream is closed, and whatever names hold."""
    for name in ("stdin", "stdout", "stderr"):
        if getattr(sys, name) is None:
            # Otherwise the next file to be opened would get its number, and what libraries print.
            setattr(sys, name, open(os.devnull, "r" if name == "stdin" else "w"))  # noqa: SIM115 - stays open
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")


def _end(name: str, error: Exception, stop: StopRequest) -> None:
    status = _status(error, stop)
    if status is None or (status and os.environ.get("EGATTN_TRACEBACK")):
        if not _is_one_of_several():
            raise error
        # In order, Python would end only together with the other processes, which may wait.
        traceback.print_exception(error)
        end_process(status or 1)
    if status == 0:
        say(str(error))
    elif not isinstance(error, BrokenPipeError):
        say(f"{name}: {' '.join(str(error).split())}", error=True)
    try:
        sys.stdout.flush()
    except OSError:
        silence()
    if status:
        end_process(status)


def _status(error: Exception, stop: StopRequest) -> int | None:
    """Exit status for what a user can cause; None for a fault of the program."""
    if isinstance(error, Preempted):
        # For a supervisor this is an end in good order, if the same command continues.
        return 0 if stop.resumes else 128 + signal.Signals[stop.name or "SIGTERM"]
    if isinstance(error, BrokenPipeError):
        # Nobody reads the output any more; as if that had ended the process.
        return 128 + signal.SIGPIPE
    if isinstance(error, FloatingPointError):
        return 1
    if isinstance(error, ValueError | OSError | NotImplementedError | MemoryError):
        return 2
    # What JAX says where JAX_PLATFORMS names what is not here.
    return 2 if "nable to initialize backend" in str(error) else None


def _is_one_of_several() -> bool:
    jax = sys.modules.get("jax")
    return jax is not None and jax.distributed.is_initialized()


def end_process(status: int) -> NoReturn:
    """Ends the process; at once if it is one of several, for they may be waiting for it."""
    if _is_one_of_several():
        with contextlib.suppress(OSError):
            sys.stdout.flush()
            sys.stderr.flush()
        os._exit(status)
    sys.exit(status)
