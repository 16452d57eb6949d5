"""Other processes: none that a test starts outlives it."""

import os
import subprocess
import sys
from typing import Any

_started: list["Process"] = []


class Process(subprocess.Popen[str]):
    """A process that is killed where the block around it fails, instead of being waited for."""

    def __exit__(self, kind: Any, value: Any, trace: Any) -> None:
        if kind is not None:
            self.kill()
        super().__exit__(kind, value, trace)


def spawn(*words: object, python: object = sys.executable, **options: Any) -> Process:
    """Starts Python; both outputs arrive in one pipe.

    Args:
      *words: Arguments of the interpreter.
      python: Which one.
      **options: Of `subprocess.Popen`; variables in `env` are added to this process' own.
    """
    options["env"] = {**os.environ, "PYTHONUNBUFFERED": "1", **options.get("env", {})}
    options = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True} | options
    process = Process([str(python), *map(str, words)], **options)
    _started.append(process)
    return process


def kill_remaining() -> None:
    """Ends what a test has started and not waited for, as after a failure."""
    while _started:
        with _started.pop() as process:
            process.kill()
