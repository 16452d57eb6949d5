"""The program's commands, in this process or another one."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from experiments.active_matter.__main__ import main


def start(command: str) -> subprocess.Popen:
    """Starts a command in another process, with as many devices as this one."""
    return subprocess.Popen(
        [sys.executable, "-m", "experiments.active_matter", *command.split()],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        cwd=Path(__file__).parents[2],
        env={**os.environ, "JAX_NUM_CPU_DEVICES": "8", "PYTHONUNBUFFERED": "1"},
    )


def records(run: Path, kind: str) -> list[dict]:
    """Records of a kind in a run's metrics."""
    lines = (run / "metrics.jsonl").read_text().splitlines()
    return [r for r in map(json.loads, lines) if r["kind"] == kind]


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
