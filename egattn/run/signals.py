"""Stopping on request: SIGTERM, SIGINT and SIGHUP, from the first instruction of a command on.

Needs the standard library only, so that a command can listen before it imports anything else.
"""

import contextlib
import math
import os
import select
import signal
import socket
import sys
import threading
import time
from collections.abc import Iterator

_SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)
# Seconds in which a signal that comes again is the same request: `timeout` and some terminals send
# it to the process and to its group.
_ONE_REQUEST = 0.2
# Seconds in which a destructor that a signal has hit is over.
_MOMENT = 0.01
# Seconds that work which cannot go on later has to clean up.
_GRACE = 5


class Preempted(Exception):
    """A signal ended the work; what was done of a run is saved, and the same command continues."""


class StopRequest:
    """Listens for signals while it is entered, in the main thread.

    At first nothing would be lost: a signal ends a command there and then, with status 128 + its
    number, for Python's own handlers would have to wait until XLA has compiled. `keeping` and
    `waiting` say otherwise for what they enclose, but what cannot go on later ends within seconds.
    A second signal always ends the process at once. A signal that was ignored when the process
    began, as after `nohup`, stays ignored.
    """

    def __init__(self, *, ends_process: bool = False) -> None:
        """Args: whether a signal may end the process, which then is a command and nothing else."""
        self.name: str | None = None
        """The signal that came, or None."""
        self.resumes = False
        """Whether the same command goes on where it was stopped: then a stop is no failure."""
        self._ends_process = ends_process
        self._keeps, self._waiting, self._shared = not ends_process, False, False
        # Whether the work itself ends, and says so, although it may have left `keeping` since.
        self._noted = False
        # When the signal was last sent for the same request, and the thread that sends it.
        self._since, self._again = -math.inf, None
        self._listening = threading.current_thread() is threading.main_thread()
        self._before: dict[int, object] = {}

    def __enter__(self):
        """Returns itself."""
        global _active
        self._outer, _active = _active, self
        if self._listening:
            self._near, far = socket.socketpair()
            far.setblocking(False)
            self._far = far
            heeded = [n for n in _SIGNALS if signal.getsignal(n) != signal.SIG_IGN]
            # First: what comes in between would be noted by the handler only.
            self._wakeup = signal.set_wakeup_fd(far.fileno(), warn_on_full_buffer=False)
            self._before = {number: signal.signal(number, self._handle) for number in heeded}
            self._outer_hook, sys.unraisablehook = sys.unraisablehook, self._unraisable
            threading.Thread(target=self._watch, daemon=True).start()
        return self

    def ignore(self) -> None:
        """Ends listening as the last thing of a process: its work is done, a signal comes late."""
        for number in self._before:
            signal.signal(number, signal.SIG_IGN)

    def __exit__(self, *_):
        """Gives the signals back."""
        global _active
        _active = self._outer
        if self._listening:
            sys.unraisablehook = self._outer_hook
            if self._again:
                self._again.cancel()
                self._again.join()
            signal.set_wakeup_fd(self._wakeup)
            for number, handler in self._before.items():
                signal.signal(number, handler)  # pyright: ignore[reportArgumentType] - what signal() returned
            self._far.close()

    def share(self) -> None:
        """Leaves SIGTERM to JAX, which has taken it where several processes have joined.

        They have to stop after the same step, which its coordinator finds; the other signals are
        passed on as SIGTERM.
        """
        self._shared = True
        self._before.pop(signal.SIGTERM, None)

    def check(self) -> None:
        """Raises Preempted if a signal has come; between pieces of work that one process does."""
        if self.name is not None and not self._shared:
            raise Preempted(f"stopped by {self.name}")

    @contextlib.contextmanager
    def keeping(self) -> Iterator[None]:
        """Work that has something to keep: a signal is only noted, see `check`."""
        before, self._keeps = self._keeps, True
        try:
            yield
        finally:
            self._keeps = before

    @contextlib.contextmanager
    def waiting(self) -> Iterator[None]:
        """Work that leaves something to clean up: a signal raises Preempted in it."""
        self.check()
        with self.keeping():
            self._waiting = True
            try:
                yield
            finally:
                self._waiting = False

    def _handle(self, number: int, _frame) -> None:
        self._noted = self._noted or self._keeps
        self.name = signal.Signals(number).name
        if self._shared:
            os.kill(os.getpid(), signal.SIGTERM)
        elif self._waiting:
            self._waiting = False
            raise Preempted(f"stopped by {self.name}")

    def _unraisable(self, found: "sys.UnraisableHookArgs") -> None:
        """Sends the signal of a Preempted again that came where nothing can be raised.

        As in a destructor, or here: so it comes a moment later, from another thread.
        """
        if not isinstance(found.exc_value, Preempted):
            return self._outer_hook(found)
        self._waiting, self._since = True, time.monotonic()
        again = threading.main_thread().ident, signal.Signals[self.name or "SIGTERM"]
        self._again = threading.Timer(_MOMENT, signal.pthread_kill, again)
        self._again.start()

    def _watch(self) -> None:
        """Runs beside the main thread, which may be in the compiler for a minute."""
        with self._near:
            first = self._heard()
            if first is None:
                return
            name, self._since = signal.Signals(first).name, time.monotonic()
            if not (self._keeps or self._noted or self._shared):
                if self.resumes:
                    _end(f"stopped by {name}, nothing to save; the same command continues", 0)
                _end(f"stopped by {name}", 128 + first)
            if self._ends_process and not self.resumes:
                self._near.settimeout(_GRACE)
            with contextlib.suppress(TimeoutError):
                while number := self._heard():
                    if time.monotonic() - self._since > _ONE_REQUEST:
                        name = signal.Signals(number).name
                        _end(f"\n{name} again: stopped at once", 128 + number)
                return
            _end(f"stopped by {name}", 128 + first)

    def _heard(self) -> int | None:
        """Waits for a signal that is listened to; None once nobody listens any more."""
        while received := self._near.recv(1):
            if received[0] in self._before:
                return received[0]
        return None


_active: StopRequest | None = None


def active() -> StopRequest:
    """Returns the one that listens, say the command line's, or one that never hears anything."""
    return _active or StopRequest()


@contextlib.contextmanager
def listening() -> Iterator[StopRequest]:
    """Gives the one that listens already, or listens as long as it is entered."""
    with contextlib.nullcontext(_active) if _active else StopRequest() as stop:
        yield stop


def say(line: str, *, error: bool = False) -> None:
    """Prints a line, to stderr if `error`; where nobody can read it, nothing happens."""
    with contextlib.suppress(OSError, ValueError, RuntimeError):
        print(line, file=sys.stderr if error else sys.stdout, flush=True)


def silence() -> None:
    """Sends what the process still prints nowhere, so that nothing fails at its end."""
    with contextlib.suppress(OSError, ValueError, AttributeError):
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, sys.stdout.fileno())
        os.close(nowhere)


def _end(line: str, status: int) -> None:
    """Ends the process although its main thread may be anywhere, and nobody reads its output."""
    # Not through sys.stderr, which may be replaced for a while, say where arguments are parsed.
    stream = 2 if status else 1
    with contextlib.suppress(OSError):
        if select.select([], [stream], [], 1)[1]:
            if status == 0 and sys.__stdout__ is not None:
                with contextlib.suppress(OSError, ValueError):
                    sys.__stdout__.flush()
            os.write(stream, f"{line}\n".encode())
    os._exit(status)
