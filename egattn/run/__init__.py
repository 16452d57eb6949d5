"""A run of anything: directory, checkpoints, records, signals, processes, and the loop.

A program describes what it trains as a `Task` and calls `execute`; what it is told is a dataclass
that extends `RunConfig`. Nothing here knows tokens or attention.
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from egattn.run.checkpoints import laid_out as laid_out
    from egattn.run.checkpoints import restore as restore
    from egattn.run.command import command_line as command_line
    from egattn.run.config import RUNTIME as RUNTIME
    from egattn.run.config import RunConfig as RunConfig
    from egattn.run.directory import RunDirectory as RunDirectory
    from egattn.run.execution import execute as execute
    from egattn.run.signals import Preempted as Preempted
    from egattn.run.task import Describe as Describe
    from egattn.run.task import Task as Task

_HOMES = {
    "Describe": "task",
    "Preempted": "signals",
    "RUNTIME": "config",
    "RunConfig": "config",
    "RunDirectory": "directory",
    "Task": "task",
    "command_line": "command",
    "execute": "execution",
    "laid_out": "checkpoints",
    "restore": "checkpoints",
}


def __getattr__(name: str) -> Any:
    """Imports a name when it is first used: a command listens to signals before all else."""
    if name not in _HOMES:
        raise AttributeError(f"module 'egattn.run' has no attribute {name!r}")
    return getattr(importlib.import_module(f"egattn.run.{_HOMES[name]}"), name)
