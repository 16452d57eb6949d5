"""Two processes with four devices each: the numbers of one, stopped, killed, frozen or missing."""

import re
import shutil
import signal
import socket
import time
from pathlib import Path

import jax
import pytest

from egattn.run.processes import DistributedConfig, together
from tests.processes import Process
from tests.training import EREG, egattn, numbers, records, start

pytestmark = pytest.mark.slow

LONG = EREG.replace("--steps 8", "--steps 3000").replace("--evaluate-every 4", "")


def free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("localhost", 0))
        return listener.getsockname()[1]


def launch(run: Path, data: Path, options: str, *, count: int = 2) -> list[Process]:
    """Starts `count` of two processes."""
    job = f"--distributed.coordinator localhost:{free_port()} --distributed.num-processes 2"
    command = f"train {{0}} --data {{1}} {options} {job} --distributed.process-id"
    return [start(f"{command} {i}", run, data, devices=4) for i in range(count)]


def finish(processes: list[Process]) -> tuple[list[int], list[str]]:
    """Exit statuses and outputs."""
    outputs = [process.communicate(timeout=240)[0] for process in processes]
    return [process.returncode for process in processes], outputs


def await_line(process: Process, pattern: str) -> str:
    """Reads until a line matches; returns what was read."""
    assert process.stdout is not None
    text = ""
    for line in process.stdout:
        text += line
        if re.search(pattern, line):
            return text
    raise AssertionError(f"no line matches {pattern!r}:\n{text}")


def assert_same_numbers(run: Path, other: Path) -> None:
    for mine, theirs in zip(numbers(run), numbers(other), strict=True):
        assert mine == pytest.approx(theirs, rel=5e-6)
    for mine, theirs in zip(records(run, "train"), records(other, "train"), strict=True):
        for layer, expected in zip(mine["head_entropy"], theirs["head_entropy"], strict=True):
            assert layer == pytest.approx(expected, abs=1e-6)


@pytest.mark.slow
def test_numbers_are_those_of_one_process(finished, data, tmp_path):
    run = tmp_path / "run"
    mesh = "--mesh replica=2,fsdp=2,tensor=2"
    statuses, outputs = finish(launch(run, data, f"{EREG} {mesh}"))
    assert statuses == [0, 0]
    assert_same_numbers(run, finished)
    assert "devices: 8 x cpu in 2 processes" in outputs[0]
    # Process 0 alone writes logs.
    assert "step 8" not in outputs[1]
    assert len(list((run / "tensorboard").iterdir())) == 1


@pytest.mark.slow
def test_both_start_from_another_run(finished, data, tmp_path):
    options = f"{EREG} --init-from {finished}"
    egattn(f"train {{0}} --data {{1}} {options}", tmp_path / "one", data)
    mesh = "--mesh replica=2,fsdp=2,tensor=2"
    statuses, outputs = finish(launch(tmp_path / "two", data, f"{options} {mesh}"))
    assert statuses == [0, 0], outputs
    assert_same_numbers(tmp_path / "two", tmp_path / "one")
    # They did not begin where random weights do.
    assert numbers(tmp_path / "two")[0] != numbers(finished)[0]


@pytest.mark.slow
def test_stopped_together_then_continued_by_one_and_by_two(finished, data, tmp_path, capsys):
    run = tmp_path / "run"
    shutil.copytree(finished, run)
    # From one process to two ...
    for step in (6, 8):
        shutil.rmtree(run / "checkpoints" / str(step))
    statuses, outputs = finish(launch(run, data, EREG))
    assert statuses == [0, 0]
    assert "resumed at step 4" in outputs[0]
    assert_same_numbers(run, finished)
    # ... and back to one.
    shutil.rmtree(run / "checkpoints" / "8")
    egattn(f"train {{0}} --data {{1}} {EREG}", run, data)
    assert "resumed at step 6" in capsys.readouterr().out
    assert_same_numbers(run, finished)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_to_one_process_stops_both_after_the_same_step(data, tmp_path, number):
    run = tmp_path / "run"
    processes = launch(run, data, LONG)
    await_line(processes[0], r"^step 3 ")
    processes[1].send_signal(number)
    statuses, outputs = finish(processes)
    assert statuses == [0, 0]
    stops = [re.search(r"stopped by SIG\w+ after step (\d+), saved", text) for text in outputs]
    assert stops[0]
    assert stops[1]
    assert stops[0][1] == stops[1][1]
    assert (run / "checkpoints" / stops[0][1] / "checksums.json").exists()


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGSTOP])
def test_a_process_that_dies_or_freezes_ends_the_job_and_is_named(data, tmp_path, number):
    processes = launch(tmp_path / "run", data, f"{LONG} --distributed.heartbeat-timeout 10")
    await_line(processes[0], r"^step 3 ")
    processes[1].send_signal(number)
    began = time.monotonic()
    try:
        output = processes[0].communicate(timeout=60)[0]
    finally:
        processes[1].kill()
        processes[1].communicate()
    assert processes[0].returncode not in (0, None)
    assert time.monotonic() - began < 60
    # JAX's coordinator names it on a line of its own.
    assert re.search(r"stopped sending heartbeats\):\s+(/job:\S+/task:)?1$", output, re.MULTILINE)
    assert "Traceback" not in output


def test_an_error_that_a_lost_process_causes_says_so(monkeypatch, capsys):
    """Whether there is one depends on what this process was doing with the other one."""
    monkeypatch.setattr(jax, "process_count", lambda: 2)
    monkeypatch.setattr(time, "sleep", lambda seconds: print(f"slept {seconds} s"))
    config = DistributedConfig(heartbeat_timeout=7)
    reason = "UNKNOWN: Gloo AllGather failed: Read error [127.0.0.1]:587: Connection reset by peer"
    for kind in (jax.errors.JaxRuntimeError, ValueError):
        lost = pytest.raises(ConnectionError, match=re.escape(f"lost another process: {reason}"))
        with lost, together(config):
            raise kind(f"{reason}\nstack")
        assert "its name follows within 7 s\nslept 17 s\n" in capsys.readouterr().out
    # What is this process's own fault stays what it is.
    for mine in (ValueError("mine"), jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: mine")):
        with pytest.raises(type(mine), match="mine"), together(config):
            raise mine
    assert capsys.readouterr().out == ""


def test_an_error_of_one_process_ends_the_job(data, tmp_path):
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "mine").write_text("")
    began = time.monotonic()
    statuses, outputs = finish(launch(tmp_path / "run", data, EREG))
    assert time.monotonic() - began < 60
    assert statuses[0] == 2
    assert statuses[1] != 0
    assert outputs[0].endswith("run exists and is not a run directory\n")
    assert [path.name for path in (tmp_path / "run").iterdir()] == ["mine"]


def test_a_process_that_does_not_come_is_an_error(data, tmp_path):
    processes = launch(tmp_path / "run", data, f"{EREG} --distributed.join-timeout 5", count=1)
    (status,), (output,) = finish(processes)
    assert status not in (0, None)
    assert "joining the other processes, for at most 5 s" in output
    assert not (tmp_path / "run").exists()
