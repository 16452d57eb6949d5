"""Whatever shows progress can fail without touching training."""

import contextlib
import dataclasses
import errno
import io
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import jax
import numpy as np
import pytest
from tensorboardX import record_writer

from egattn.cli import main
from egattn.run import Describe, RunConfig, command_line, execute
from tests.run.test_loop import Device, counting
from tests.test_command_line import events


@pytest.fixture
def config(tmp_path) -> RunConfig:
    return RunConfig(tmp_path / "run", steps=6, log_every=1, checkpoint_every=2)


def train(config: RunConfig, **more) -> None:
    execute(config, lambda: counting(config, Device(0.1).step, **more))


def logged(config: RunConfig) -> list[tuple]:
    lines = map(json.loads, (config.run / "metrics.jsonl").read_text().splitlines())
    return sorted((x["kind"], x["step"]) for x in lines if "step" in x)


COMPLETE = [("save", s) for s in (2, 4, 6)] + [("train", s) for s in range(1, 7)]


def full() -> io.TextIOWrapper:
    return open("/dev/full", "w")


def unread() -> io.TextIOWrapper:
    reader, writer = os.pipe()
    os.close(reader)
    return open(writer, "w")


def ended() -> io.TextIOWrapper:
    """As a terminal that was closed."""
    leader, follower = os.openpty()
    os.close(leader)
    return open(follower, "w")


def closed() -> io.TextIOWrapper:
    stream = open(os.devnull, "w")  # noqa: SIM115 - closed below
    stream.close()
    return stream


def ascii_only() -> io.TextIOWrapper:
    return open(os.devnull, "w", encoding="ascii")


@pytest.mark.parametrize("bar", [False, True])
@pytest.mark.parametrize("output", [full, unread, ended, closed, ascii_only])
def test_output_that_fails(config, monkeypatch, output, bar):
    """A bar is drawn by a thread of its own."""
    monkeypatch.setenv("TTY_COMPATIBLE", "1" if bar else "0")
    header = Describe(header=lambda state: ["data: é", *map(str, range(3000))])
    with output() if output is not closed else contextlib.nullcontext(closed()) as stream:
        monkeypatch.setattr(sys, "stdout", stream)
        train(config, describe=header)
        monkeypatch.undo()
    assert logged(config) == COMPLETE


def test_names_print_as_they_are(tmp_path, capsys):
    name = "layers=[a,b] a[/b]c [red]:smile:"
    config = RunConfig(tmp_path / name, steps=2, checkpoint_every=1)
    header = Describe(header=lambda state: [str(config.run)])
    for _ in range(2):
        train(config, describe=header)
        assert f"{config.run}\n" in (output := capsys.readouterr().out)
    # Such a directory's checkpoints can be read, too.
    assert "resumed at step 2" in output


def test_names_that_the_output_cannot_spell(config, monkeypatch):
    content = io.BytesIO()
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(content, encoding="ascii"))
    with command_line("program", ends_process=False):
        train(config, describe=Describe(header=lambda state: ["data: é \udcff"]))
        sys.stdout.flush()
    assert rb"data: \xe9 \udcff" in content.getvalue()
    assert b"step 6" in content.getvalue()


class TestTensorBoard:
    def test_its_directory_is_a_file(self, config, capsys):
        train(config)
        (events_file,) = (config.run / "tensorboard").iterdir()
        events_file.unlink()
        (config.run / "tensorboard").rmdir()
        (config.run / "tensorboard").write_text("")
        train(config)
        said = r"TensorBoard events end here: \[Errno 17\] File exists: '\S+'\n"
        assert re.fullmatch(said, capsys.readouterr().err)
        assert logged(config) == COMPLETE

    @pytest.mark.parametrize("size", [1, 200])
    def test_the_disk_is_full(self, config, monkeypatch, capsys, size):
        """Found at the end, where all fits into memory, or when it does not."""
        with open("/dev/full", "wb", buffering=0) as disk, open(os.devnull, "wb") as nowhere:
            stream = io.BufferedWriter(disk)
            monkeypatch.setattr(record_writer, "open_file", lambda path: stream)
            noise = np.random.default_rng(0).random((size, size, 3))
            train(config, draw=lambda board, kind, step, _: board.image("noise", step, noise))
            os.dup2(nowhere.fileno(), disk.fileno())
            stream.close()
        said = capsys.readouterr().err
        assert said == "TensorBoard events end here: [Errno 28] No space left on device\n"
        assert logged(config) == COMPLETE

    def test_what_a_program_draws_fails(self, config, capsys):
        def draw(board, kind, step, values):
            if step == 3:
                raise RuntimeError("no such colour")

        train(config, draw=draw)
        assert "TensorBoard events end here: no such colour" in capsys.readouterr().err
        assert logged(config) == COMPLETE

    def test_events_of_steps_that_are_computed_again_no_longer_count(self, config):
        train(config)
        (path,) = (config.run / "tensorboard").iterdir()
        version, begun, *rest = events(path)
        assert version.file_version == "brain.Event:2"
        assert (begun.step, begun.session_log.status) == (1, begun.session_log.START)
        assert [e.step for e in rest if e.summary.value[0].tag == "train/loss"] == [*range(1, 7)]


class TestAProfileThatFails:
    """The training goes on."""

    @pytest.fixture
    def traced(self, config) -> RunConfig:
        return dataclasses.replace(config, profile=(1, 2))

    def goes_on(self, config: RunConfig, capsys) -> None:
        train(config)
        assert "no profile: " in capsys.readouterr().out
        assert logged(config) == COMPLETE

    def test_in_the_way_of_its_directory(self, traced, tmp_path, capsys):
        traced.run.mkdir()
        (traced.run / "profile").write_text("")
        self.goes_on(traced, capsys)
        train(dataclasses.replace(traced, run=tmp_path / "next"))
        assert capsys.readouterr().out.startswith("profile: ")

    def test_traced_already(self, traced, tmp_path, capsys):
        with jax.profiler.trace(tmp_path / "other"):
            self.goes_on(traced, capsys)

    def test_no_room_at_its_end(self, traced, capsys, monkeypatch):
        stop = jax.profiler.stop_trace

        def full():
            stop()
            raise OSError(errno.ENOSPC, "No space left on device")

        monkeypatch.setattr(jax.profiler, "stop_trace", full)
        self.goes_on(traced, capsys)


class TestCommands:
    """Those that show something and end: as any program, see docs/running.md."""

    @pytest.mark.parametrize(("output", "status"), [(unread, 141), (full, 2), (closed, 0)])
    @pytest.mark.parametrize("command", ["cost", "inspect"])
    def test_output_that_fails(self, data, monkeypatch, capsys, command, output, status):
        if output is closed:
            monkeypatch.setattr(sys, "stdout", None)
        else:
            monkeypatch.setattr(sys, "stdout", output())
        words = {"cost": ["cost"], "inspect": ["inspect", str(data)]}
        code = 0
        try:
            main(words[command])
        except SystemExit as stop:
            code = stop.code
        with contextlib.suppress(OSError):
            sys.stdout.close()
        monkeypatch.undo()
        assert code == status
        said = f"egattn {command}: [Errno 28] No space left on device\n" if status == 2 else ""
        assert capsys.readouterr().err == said

    @pytest.mark.parametrize(
        ("redirected", "status"),
        [(">&-", 0), ("<&- >&- 2>&-", 0), (">/dev/full", 2), ("| true", 0)],
    )
    def test_from_a_shell(self, tmp_path, redirected, status):
        command = f"{sys.executable} -c 'from egattn.cli import main; main()' --help"
        shell = subprocess.run(
            ["bash", "-c", f"{command} {redirected}"],
            text=True,
            capture_output=True,
            check=False,
            cwd=Path.cwd(),
        )
        assert shell.returncode == status
        assert shell.stderr.count("\n") == (status == 2)
