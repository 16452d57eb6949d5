"""The page "Train your own Flax model": its program trains, and goes on to the bit when killed."""

import json
import re
import signal
from pathlib import Path

import pytest

from tests.processes import Process, spawn

PAGE = Path(__file__).parents[2] / "docs" / "own_model.md"
OPTIONS = ["--steps", "60", "--log-every", "1", "--checkpoint-every", "7", "--evaluate-every", "30"]


@pytest.fixture(scope="module")
def program(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("own") / "spirals.py"
    match = re.search(r"```python\n(.*?)```", PAGE.read_text(encoding="utf-8"), re.DOTALL)
    assert match
    path.write_text(match[1], encoding="utf-8")
    return path


def start(program: Path, run: Path, devices: int) -> Process:
    return spawn(program, run, *OPTIONS, env={"JAX_NUM_CPU_DEVICES": str(devices)})


def stop_after(process: Process, step: int, number: signal.Signals) -> tuple[str, int]:
    text = ""
    with process:
        assert process.stdout is not None
        for line in process.stdout:
            text += line
            if line.startswith(f"step {step} "):
                process.send_signal(number)
                break
        text += process.stdout.read()
    return text, process.returncode


def numbers(run: Path) -> list[tuple]:
    lines = map(json.loads, (run / "metrics.jsonl").read_text().splitlines())
    return [
        (x["kind"], x["step"], x["loss"], x["accuracy"])
        for x in lines
        if x["kind"] in ("train", "validation")
    ]


@pytest.mark.parametrize("devices", [pytest.param(1, marks=pytest.mark.slow), 8])
def test_killed_and_continued_it_gives_the_same_numbers(program, tmp_path, devices):
    straight, killed = tmp_path / "straight", tmp_path / "killed"
    with start(program, straight, devices) as process:
        text = process.communicate()[0]
    assert process.returncode == 0, text
    assert numbers(straight)[-1][3] > 0.95
    text, status = stop_after(start(program, killed, devices), 20, signal.SIGKILL)
    assert status == -signal.SIGKILL
    text, status = stop_after(start(program, killed, devices), 40, signal.SIGTERM)
    assert status == 0, text
    assert re.search(r"^resumed at step (7|14)$", text, re.MULTILINE)
    stopped = re.search(r"stopped by SIGTERM after step (\d+), saved; the same command", text)
    assert stopped, text
    with start(program, killed, devices) as process:
        text = process.communicate()[0]
    assert f"resumed at step {stopped[1]}" in text
    assert numbers(killed) == numbers(straight)
