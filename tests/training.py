"""Small training runs on real Python source, in this process or another one."""

import json
from pathlib import Path

import pytest

from egattn.cli import main
from tests.processes import Process, spawn

MODEL = "--model.num-layers 2 --model.num-heads 2 --model.embed-dim 32 --model.init-std 0.05"
TRAIN = f"{MODEL} --batch-size 8 --log-every 1 --evaluate-every 4 --checkpoint-every 2"
EREG = f"--preset ereg_sm_t_scfuffn {TRAIN} --steps 8"


def egattn(command: str, *paths: Path | str) -> None:
    """Runs a command in this process; `{0}` stands for the first path."""
    main([str(paths[int(word[1])]) if word[0] == "{" else word for word in command.split()])


def start(command: str, *paths: Path | str, devices: int = 8, **kwargs) -> Process:
    """Starts a command in another process, with as many devices as this one has by default."""
    words = [str(paths[int(word[1])]) if word[0] == "{" else word for word in command.split()]
    # The number of devices decides how sums are rounded.
    environment = {"JAX_NUM_CPU_DEVICES": str(devices)}
    main = "from egattn.cli import main; main()"
    return spawn("-c", main, *words, env=environment, **kwargs)


def records(run: Path, kind: str) -> list[dict]:
    """Records of a kind in a run's metrics."""
    lines = (run / "metrics.jsonl").read_text().splitlines()
    return [r for r in map(json.loads, lines) if r["kind"] == kind]


def numbers(run: Path) -> list[tuple]:
    """What a run computed, step by step."""
    return [(r["step"], r["loss"], r["penalty"], r["gradient_norm"]) for r in records(run, "train")]


def refused(capsys, command: str, *paths: Path | str) -> str:
    """The line with which a command ends with status 2."""
    capsys.readouterr()
    with pytest.raises(SystemExit) as stop:
        egattn(command, *paths)
    assert stop.value.code == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    return error
