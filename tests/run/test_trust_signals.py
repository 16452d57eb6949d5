"""Signals from the first instruction of a command to the last."""

import random
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.processes import Process, spawn
from tests.training import EREG, start

SIGNALS = [signal.SIGINT, signal.SIGTERM, signal.SIGHUP]
# Work in which Python hears nothing, as in the compiler; it lets other threads run.
DEAF = "import hashlib; hashlib.pbkdf2_hmac('sha256', b'', b'', 10**9)"


def script(text: str, **options) -> Process:
    """Starts a program that says "ready"; without JAX it takes no time."""
    head = "from egattn.run.command import command_line\n"
    head += "from egattn.run.signals import active, say\nimport os, signal, time, atexit\n"
    options = {"stderr": subprocess.PIPE, "env": {"PYTHONUNBUFFERED": ""}} | options
    return spawn("-c", head + text, **options)


def listening(process: Process) -> None:
    """Waits for the first instruction of a command, before which Python itself starts."""
    status = Path(f"/proc/{process.pid}/status")
    # The last one that it takes.
    bit = 1 << (signal.SIGHUP - 1)
    while process.poll() is None:
        (caught,) = re.findall(r"^SigCgt:\s*(\w+)", status.read_text(), re.MULTILINE)
        if int(caught, 16) & bit:
            return
        time.sleep(0.01)
    raise AssertionError(process.communicate())


def ready(process: Process) -> None:
    assert process.stdout is not None
    assert process.stdout.readline() == "ready\n"


def ending(process: Process, timeout: float = 60) -> tuple[int, str]:
    """Exit status, and all that it said."""
    out, err = process.communicate(timeout=timeout)
    return process.returncode, out + err


@pytest.mark.parametrize("number", SIGNALS)
@pytest.mark.parametrize("work", ["time.sleep(60)", DEAF])
def test_where_nothing_would_be_lost_it_ends_at_once(number, work):
    process = script(f"with command_line('program'):\n    say('ready')\n    {work}")
    ready(process)
    process.send_signal(number)
    assert ending(process, 20) == (128 + number, f"stopped by {number.name}\n")


@pytest.mark.parametrize("number", SIGNALS)
def test_what_goes_on_later_ends_well(number):
    process = script(
        "with command_line('program'):\n    active().resumes = True\n    say('ready')\n"
        "    time.sleep(60)"
    )
    ready(process)
    process.send_signal(number)
    said = f"stopped by {number.name}, nothing to save; the same command continues\n"
    assert ending(process) == (0, said)


@pytest.mark.parametrize("resumes", [False, True])
def test_what_it_says_no_replaced_stream_keeps(resumes):
    """As where arguments are parsed, whose complaints become one line."""
    process = script(
        f"import contextlib, io\nwith command_line('program'):\n    active().resumes = {resumes}\n"
        "    print('before')\n    with contextlib.redirect_stderr(io.StringIO()) as stream:\n"
        "        with contextlib.redirect_stdout(stream):\n"
        "            os.write(1, b'ready\\n')\n            time.sleep(60)",
    )
    ready(process)
    process.send_signal(signal.SIGINT)
    if resumes:
        said = "before\nstopped by SIGINT, nothing to save; the same command continues\n"
        assert ending(process) == (0, said)
    else:
        assert ending(process) == (128 + signal.SIGINT, "stopped by SIGINT\n")


def test_what_was_ignored_stays_ignored():
    """As SIGHUP after nohup."""
    text = (
        "import time\nfrom egattn.run.command import command_line\nwith command_line('program'):\n"
        "    print('ready', flush=True)\n    time.sleep(1)\n    print('done')"
    )
    pipes = {"stderr": subprocess.PIPE, "stdin": subprocess.DEVNULL}
    process = spawn(sys.executable, "-c", text, python="nohup", **pipes)
    ready(process)
    process.send_signal(signal.SIGHUP)
    assert ending(process) == (0, "done\n")


KEEPING = (
    "with command_line('program'), active().keeping():\n    active().resumes = True\n"
    "    say('ready')\n    for _ in range({tenths}): time.sleep(0.1)\nsay(active().name)"
)


def test_two_at_the_same_moment_are_one():
    """`timeout` sends its signal to the process and then to its group."""
    process = script(KEEPING.format(tenths=10))
    ready(process)
    for _ in range(2):
        process.send_signal(signal.SIGTERM)
        time.sleep(0.02)
    assert ending(process) == (0, "SIGTERM\n")


@pytest.mark.parametrize("second", SIGNALS)
def test_another_one_ends_it_at_once(second):
    process = script(KEEPING.format(tenths=600))
    ready(process)
    process.send_signal(signal.SIGTERM)
    time.sleep(0.5)
    assert process.poll() is None
    process.send_signal(second)
    assert ending(process) == (128 + second, f"\n{second.name} again: stopped at once\n")


def test_another_one_ends_what_nobody_reads():
    process = script(
        "with command_line('program'), active().keeping():\n    say('ready')\n"
        "    print('x' * 2**20, flush=True)",
        stderr=subprocess.STDOUT,
    )
    ready(process)
    for _ in range(2):
        process.send_signal(signal.SIGTERM)
        time.sleep(0.5)
    assert process.wait(10) == 128 + signal.SIGTERM
    process.communicate()


HERE = {"PYTHONPATH": str(Path.cwd())}
STAGED = (
    "from pathlib import Path\nfrom egattn.run.staging import staged_directory\n"
    "with command_line('program'), staged_directory(Path('made')) as staging:\n"
    "    (staging / 'file').write_text('')\n    say('ready')\n    {work}"
)


@pytest.mark.parametrize("number", SIGNALS)
def test_a_directory_in_the_making_is_removed(tmp_path, number):
    process = script(STAGED.format(work="time.sleep(60)"), cwd=tmp_path, env=HERE)
    ready(process)
    process.send_signal(number)
    status, said = ending(process)
    assert status == 128 + number
    assert said.removeprefix("program: ") == f"stopped by {number.name}\n"
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("number", SIGNALS)
@pytest.mark.parametrize("seconds", [0, 0.4])
def test_in_a_destructor(tmp_path, number, seconds):
    """Where Python can only print an exception: the work ends as anywhere else."""
    destructor = (
        "class Slow:\n        def __del__(self):\n"
        f"            os.kill(os.getpid(), {int(number)})\n            time.sleep({seconds})\n"
        "    Slow()\n    time.sleep(60)"
    )
    process = script(STAGED.format(work=destructor), cwd=tmp_path, env=HERE)
    ready(process)
    status, said = ending(process, 20)
    assert status == 128 + number
    assert said.removeprefix("program: ") == f"stopped by {number.name}\n"
    assert not list(tmp_path.iterdir())


def test_work_that_hears_nothing_ends_within_seconds(tmp_path):
    """What it leaves nobody takes for the directory, and the next start removes."""
    process = script(STAGED.format(work=DEAF), cwd=tmp_path, env=HERE)
    ready(process)
    time.sleep(1)
    process.send_signal(signal.SIGTERM)
    assert ending(process, 20) == (128 + signal.SIGTERM, "stopped by SIGTERM\n")
    assert [path.name for path in tmp_path.iterdir()] == [".made.partial"]
    process = script(STAGED.format(work="pass"), cwd=tmp_path, env=HERE)
    assert ending(process) == (0, "ready\n")
    assert [path.name for path in tmp_path.iterdir()] == ["made"]
    assert [path.name for path in (tmp_path / "made").iterdir()] == ["file"]


@pytest.mark.parametrize("number", SIGNALS)
def test_after_the_last_instruction_it_comes_late(number):
    """At exit all that was done is done: the status is that of the work."""
    process = script(
        f"def late():\n    os.kill(os.getpid(), {int(number)})\n    time.sleep(0.3)\n"
        "atexit.register(late)\nwith command_line('program'):\n    say('ready')"
    )
    assert ending(process) == (0, "ready\n")


@pytest.mark.parametrize("command", ["train {0} --data {1} " + EREG, "evaluate {2}"])
def test_while_a_command_imports(finished, data, tmp_path, command):
    process = start(
        command,
        *(tmp_path / "run", data, finished),
    )
    listening(process)
    time.sleep(0.5)
    process.send_signal(signal.SIGHUP)
    output, _ = process.communicate(timeout=60)
    if "train" in command:
        assert output == "stopped by SIGHUP, nothing to save; the same command continues\n"
    else:
        assert output == "stopped by SIGHUP\n"
    assert process.returncode == (0 if "train" in command else 128 + signal.SIGHUP)
    assert not (tmp_path / "run").exists()


PREPARE = "prepare {0} --max-bytes 1000000 --vocab-size 2000 --context-length 32"
COMMANDS = {
    "train": f"train {{0}} --data {{1}} {EREG}",
    "evaluate": "evaluate {2}",
    "generate": "generate {2} hello --max-new-tokens 8",
    "prepare": PREPARE,
    "report": "report {2} --out {0}",
    "convert": "convert {2} {0}",
    "private export": "private export {2} {0}",
}


@pytest.mark.slow
@pytest.mark.parametrize("name", COMMANDS)
def test_at_random_moments(finished, data, tmp_path, name):
    """In the first seconds, at any time, and about the end: one line, and a status that is told."""
    draw = random.Random(name)
    began = time.monotonic()
    with start(COMMANDS[name], tmp_path / "whole", data, finished) as process:
        text, _ = process.communicate(timeout=300)
    assert process.returncode == 0, text
    took = time.monotonic() - began
    spans = [(0, 2), (0, 2), (0, took), (0, took), (0.8 * took, 1.1 * took)]
    for attempt, span in enumerate(spans):
        number = draw.choice(SIGNALS)
        process = start(
            COMMANDS[name],
            *(tmp_path / str(attempt), data, finished),
        )
        listening(process)
        time.sleep(draw.uniform(*span))
        process.send_signal(number)
        text, _ = process.communicate(timeout=120)
        assert process.returncode in {0, 0 if name == "train" else 128 + number}, text
        assert "Traceback" not in text
        assert "Exception" not in text
        if process.returncode or (name == "train" and "stopped" in text):
            assert len(re.findall(f"stopped by {number.name}", text)) == 1
        leftovers = {path.name for path in tmp_path.glob(f".{attempt}.*")}
        assert leftovers <= {f".{attempt}.partial"}
