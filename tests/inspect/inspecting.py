"""`egattn inspect` run from tests, and damage for it to find."""

import json
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest

from egattn.train.config import TrainConfig
from egattn.train.evaluate import load_state
from tests.converted_runs import one_device
from tests.training import egattn


def run_of(capsys, words: str, *paths: Path | str) -> dict[str, Any]:
    """What the command prints with --json: strict JSON on one line."""
    egattn(f"inspect {words} --json", *paths)
    line = capsys.readouterr().out
    assert line.count("\n") == 1

    def refuse(name: str):
        raise AssertionError(f"{name} is not JSON")

    return json.loads(line, parse_constant=refuse)


def text_of(capsys, words: str, *paths: Path | str) -> str:
    egattn(f"inspect {words}", *paths)
    return capsys.readouterr().out


def arrays(run: Path, step: int) -> dict[str, np.ndarray]:
    """All that a checkpoint holds, as every other command restores it, by path."""
    state = load_state(TrainConfig.read(run), one_device(), step)
    leaves = jax.tree_util.tree_leaves_with_path(state)
    simple = jax.tree_util.keystr
    return {simple(path, simple=True, separator="/"): np.asarray(x) for path, x in leaves}


def rows(values: dict[str, Any]) -> dict[str, dict[str, Any]]:
    return {row["name"]: row for row in values["parameters"]["table"]}


def garble(run: Path, step: int, values: dict[str, np.ndarray]) -> int:
    """Overwrites the values of arrays where a checkpoint's files hold them; counts the places."""
    found = 0
    files = [p for p in (run / "checkpoints" / str(step) / "state").rglob("d/*") if p.is_file()]
    for file in files:
        content = file.read_bytes()
        for value in values.values():
            # Small ones lie in the index, which has checksums of its own.
            pieces = [value[..., i : i + 8, :] for i in range(0, value.shape[-2], 8)]
            for piece in (value, *pieces):
                raw = piece.tobytes()
                if piece.size >= 64 and np.ptp(piece) > 0 and raw in content:
                    content, found = content.replace(raw, b"\xff" * len(raw)), found + 1
        file.write_bytes(content)
    return found


def flip(file: Path) -> None:
    """Changes one bit in the middle of a file."""
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 1
    file.write_bytes(content)


def assert_fails(capsys, command: str, message: str) -> None:
    with pytest.raises(SystemExit) as stop:
        egattn(command)
    assert stop.value.code == 2
    error = capsys.readouterr().err.strip()
    assert error.count("\n") == 0
    assert error.startswith("egattn inspect: ")
    assert message in error
