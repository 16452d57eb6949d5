"""Stopping on request: SIGTERM and SIGINT save the run and end it well."""

import contextlib
import os
import signal
import socket
import sys
import threading
from collections.abc import Iterator

import jax
from jax.experimental import multihost_utils

_SIGNALS = (signal.SIGTERM, signal.SIGINT)


class Preempted(Exception):
    """A signal ended the training; it is saved, and the same command continues it."""


class StopRequest:
    """Listens for SIGTERM and SIGINT while it is entered, in the main thread.

    The first signal asks the loop to save and stop, see `requested`. It interrupts waiting, see
    `waiting`; and while nothing would be lost, see `idle`, it ends the process there and then, for
    Python's own handlers would have to wait until XLA has compiled. A second signal always ends the
    process at once.

    Several processes have to stop after the same step, so there SIGTERM belongs to JAX, whose
    coordinator finds that step, and SIGINT is passed on as one.
    """

    def __init__(self) -> None:
        self.name: str | None = None
        """The signal that came, or None."""
        self._waiting = self._idle = False
        self._listening = threading.current_thread() is threading.main_thread()
        self._shared = jax.process_count() > 1

    def __enter__(self):
        """Returns itself."""
        if self._listening:
            self._near, far = socket.socketpair()
            far.setblocking(False)
            self._far = far
            names = _SIGNALS[1:] if self._shared else _SIGNALS
            self._before = {number: signal.signal(number, self._handle) for number in names}
            self._wakeup = signal.set_wakeup_fd(far.fileno(), warn_on_full_buffer=False)
            threading.Thread(target=self._watch, daemon=True).start()
        return self

    def __exit__(self, *_):
        """Gives the signals back."""
        if self._listening:
            signal.set_wakeup_fd(self._wakeup)
            for number, handler in self._before.items():
                signal.signal(number, handler)
            self._far.close()

    def requested(self, step: int) -> bool:
        """Whether to stop after this step; the same on all processes."""
        if not self._shared:
            return self.name is not None
        if not multihost_utils.reached_preemption_sync_point(step):
            return False
        self.name = self.name or "SIGTERM"
        return True

    def check(self) -> None:
        """Raises Preempted if a signal has come; between pieces of work that one process does."""
        if self.name is not None and not self._shared:
            raise Preempted

    @contextlib.contextmanager
    def waiting(self) -> Iterator[None]:
        """Work that the signal may interrupt anywhere."""
        self.check()
        self._waiting = True
        try:
            yield
        finally:
            self._waiting = False

    @contextlib.contextmanager
    def idle(self) -> Iterator[None]:
        """Work before which everything was saved: the signal ends the process."""
        self._idle = True
        try:
            yield
        finally:
            self._idle = False

    def _handle(self, number: int, _frame) -> None:
        self.name = signal.Signals(number).name
        if self._shared:
            os.kill(os.getpid(), signal.SIGTERM)
        if self._waiting and not self._shared:
            self._waiting = False
            raise Preempted

    def _watch(self) -> None:
        """Runs beside the main thread, which may be in the compiler for a minute."""
        numbers = b""
        while received := self._near.recv(64):
            numbers += bytes(n for n in received if n in _SIGNALS)
            if len(numbers) > 1:
                print(f"\n{signal.Signals(numbers[1]).name} again: stopped at once", flush=True)
                os._exit(128 + numbers[1])
            if numbers and self._idle and not self._shared:
                name = signal.Signals(numbers[0]).name
                print(f"stopped by {name}, nothing to save; the same command continues", flush=True)
                sys.stderr.flush()
                os._exit(0)
        self._near.close()
