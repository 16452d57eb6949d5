"""`egattn inspect` run from tests, and damage for it to find."""

import json
from pathlib import Path
from typing import Any

import pytest

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
