"""The program's commands, in this process or another one."""

from pathlib import Path

import pytest

from experiments.active_matter.__main__ import main
from tests.processes import Process, spawn


def start(command: str) -> Process:
    """Starts a command in another process, with as many devices as this one."""
    words = ["-m", "experiments.active_matter", *command.split()]
    return spawn(*words, cwd=Path(__file__).parents[2], env={"JAX_NUM_CPU_DEVICES": "8"})


def refused(capsys, command: str) -> str:
    """The line with which a command ends with status 2."""
    capsys.readouterr()
    with pytest.raises(SystemExit) as stop:
        main(command.split())
    assert stop.value.code == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert error.startswith("experiments.active_matter ")
    return error
