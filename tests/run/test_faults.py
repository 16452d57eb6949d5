"""What happens to a run when something breaks, injected for real: signals, disks, files, twins."""

import fcntl
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from egattn.run.integrity import damage, seal
from egattn.train.evaluate import Evaluator
from tests.processes import Process, spawn
from tests.training import EREG, TRAIN, egattn, numbers, records, start

LONG = EREG.replace("--steps 8", "--steps 100000").replace("--evaluate-every 4", "")


def read_until(process: Process, pattern: str) -> str:
    """Lines of a process up to the first that matches."""
    text = ""
    assert process.stdout is not None
    for line in process.stdout:
        text += line
        if re.search(pattern, line):
            return text
    raise AssertionError(f"no {pattern!r} in:\n{text}")


def signalled(process: Process, when: str, *numbers: signal.Signals) -> tuple[int, str]:
    """Sends signals once a line matches; returns exit status and the output after that."""
    with process:
        read_until(process, when)
        for number in numbers:
            process.send_signal(number)
        output, _ = process.communicate(timeout=120)
        return process.returncode, output


class TestSignals:
    @pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
    def test_in_training_saves_and_ends_well(self, data, tmp_path, number):
        run = tmp_path / "run"
        process = start(f"train {{0}} --data {{1}} {LONG}", run, data)
        status, output = signalled(process, "^step 5 ", number)
        assert status == 0
        (line,) = re.findall(r"^stopped by .*", output, re.MULTILINE)
        stopped = re.fullmatch(
            rf"stopped by {number.name} after step (\d+), saved; the same command continues", line
        )
        assert stopped
        assert damage(run / "checkpoints" / stopped[1]) is None
        assert records(run, "train")[-1]["step"] == int(stopped[1])

    def test_while_compiling_ends_at_once(self, data, tmp_path):
        run = tmp_path / "run"
        process = start(f"train {{0}} --data {{1}} {LONG}", run, data)
        status, output = signalled(process, "^data: ", signal.SIGTERM)
        assert status == 0
        assert "stopped by SIGTERM" in output
        assert "the same command continues" in output
        # Nothing is claimed.
        assert {path.name for path in run.iterdir()} <= {".lock"}

    def test_while_evaluating_saves_the_step_before(self, data, tmp_path):
        run = tmp_path / "run"
        options = EREG.replace("--evaluate-every 4", "--evaluate-every 3 --evaluate-windows 99999")
        process = start(f"train {{0}} --data {{1}} {options}", run, data)
        status, output = signalled(process, "^step 3  loss", signal.SIGTERM)
        assert status == 0
        assert "stopped by SIGTERM after step 3, saved" in output
        assert damage(run / "checkpoints" / "3") is None
        assert not records(run, "validation")

    def test_in_the_last_evaluation_it_is_made_up_for(
        self, finished, data, tmp_path, monkeypatch, capsys
    ):
        run, evaluate = tmp_path / "run", Evaluator.__call__

        def stopped(self, state, windows=None, check=lambda: None):
            if windows is None:
                signal.raise_signal(signal.SIGTERM)
            return evaluate(self, state, windows, check)

        with monkeypatch.context() as patch:
            patch.setattr(Evaluator, "__call__", stopped)
            egattn(f"train {{0}} --data {{1}} {EREG}", run, data)
        assert "stopped by SIGTERM after step 8, saved" in capsys.readouterr().out
        assert [r["step"] for r in records(run, "validation")] == [4]
        for _ in range(2):
            egattn(f"train {{0}} --data {{1}} {EREG}", run, data)
            last = records(run, "validation")[1:]
            assert [(r["step"], r["loss"]) for r in last] == [
                (8, r["loss"]) for r in records(finished, "validation") if r["step"] == 8
            ][:1]

    def test_second_signal_ends_at_once(self):
        script = (
            "import time\n"
            "from egattn.run.signals import StopRequest\n"
            "with StopRequest() as stop, stop.keeping():\n"
            "    print('ready', flush=True)\n"
            "    deadline = time.monotonic() + 60\n"
            "    while time.monotonic() < deadline: time.sleep(0.1)\n"
        )
        with spawn("-c", script) as process:
            read_until(process, "ready")
            process.send_signal(signal.SIGTERM)
            time.sleep(0.5)
            assert process.poll() is None
            process.send_signal(signal.SIGTERM)
            assert process.wait(10) == 128 + signal.SIGTERM


def truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-1])


def flip(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(bytes(content))


def largest(directory: Path) -> Path:
    return max((p for p in directory.rglob("*") if p.is_file()), key=lambda p: p.stat().st_size)


class TestDamagedCheckpoint:
    @pytest.mark.parametrize(
        ("harm", "complaint"),
        [
            (truncate, r"has \d+ bytes, expected \d+"),
            (flip, "has another checksum than when it was saved"),
            (Path.unlink, "is missing"),
        ],
    )
    def test_the_newest_intact_one_is_used(self, finished, data, tmp_path, capsys, harm, complaint):
        run = tmp_path / "run"
        shutil.copytree(finished, run)
        harm(largest(run / "checkpoints" / "8"))
        egattn(f"train {{0}} --data {{1}} {EREG}", run, data)
        output = capsys.readouterr().out
        assert re.search(rf"checkpoint 8 is not intact: state/\S+ {complaint}; moved to", output)
        assert "resumed at step 6" in output
        assert numbers(run) == numbers(finished)
        assert damage(run / "checkpoints" / "8") is None
        assert (run / "damaged" / "8").is_dir()

    def test_a_save_that_was_killed_does_not_count(self, finished, data, tmp_path, capsys):
        run = tmp_path / "run"
        shutil.copytree(finished, run)
        (run / "checkpoints" / "8" / "checksums.json").unlink()
        lines = (run / "metrics.jsonl").read_text().splitlines(keepends=True)
        (run / "metrics.jsonl").write_text(
            "".join(x for x in lines if '"save", "step": 8' not in x)
        )
        egattn(f"train {{0}} --data {{1}} {EREG}", run, data)
        output = capsys.readouterr().out
        assert "checkpoint 8 is not intact: it has no checksums.json" in output
        assert "; removed" in output
        assert not (run / "damaged").exists()
        assert numbers(run) == numbers(finished)

    def test_none_intact_is_an_error_and_nothing_is_lost(self, finished, data, tmp_path, capsys):
        run = tmp_path / "run"
        shutil.copytree(finished, run)
        for step in (4, 6, 8):
            truncate(largest(run / "checkpoints" / str(step)))
        before = sorted(run.rglob("*"))
        with pytest.raises(SystemExit) as stop:
            egattn(f"train {{0}} --data {{1}} {EREG}", run, data)
        assert stop.value.code == 2
        error = capsys.readouterr().err
        assert error.count("\n") == 1
        assert "checkpoints is intact: checkpoint 8 is not intact: state/" in error
        assert sorted(run.rglob("*")) == before

    def test_evaluate_says_what_it_passes_over(self, finished, tmp_path, capsys):
        run = tmp_path / "run"
        shutil.copytree(finished, run)
        flip(largest(run / "checkpoints" / "8"))
        egattn("evaluate {0} --windows 8", run)
        captured = capsys.readouterr()
        assert "checkpoint 8 is not intact" in captured.err
        assert "step 6, 8 validation windows" in captured.out
        with pytest.raises(SystemExit):
            egattn("evaluate {0} --step 8", run)
        assert "has another checksum" in capsys.readouterr().err

    def test_every_file_is_covered(self, tmp_path):
        (tmp_path / "below").mkdir()
        for name in ("a", "below/b"):
            (tmp_path / name).write_bytes(b"content")
        seal(tmp_path)
        assert damage(tmp_path) is None
        for name in ("a", "below/b", "checksums.json"):
            for harm in (truncate, Path.unlink):
                before = (tmp_path / name).read_bytes()
                harm(tmp_path / name)
                assert damage(tmp_path) is not None
                (tmp_path / name).write_bytes(before)


def test_second_trainer_on_a_run_is_refused(finished, data, tmp_path, capsys):
    run = tmp_path / "run"
    shutil.copytree(finished, run)
    with (run / ".lock").open("a") as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        with pytest.raises(SystemExit) as stop:
            egattn(f"train {{0}} --data {{1}} {EREG}", run, data)
    assert stop.value.code == 2
    assert "another process is training" in capsys.readouterr().err
    egattn(f"train {{0}} --data {{1}} {EREG}", run, data)


def mounts() -> bool:
    """Whether a small file system can be mounted in a namespace of our own."""
    probe = ["unshare", "-rm", "mount", "-t", "tmpfs", "tmpfs", "/tmp"]
    return (
        shutil.which("unshare") is not None and subprocess.run(probe, check=False).returncode == 0
    )


@pytest.mark.skipif(not mounts(), reason="needs unprivileged mount namespaces")
@pytest.mark.slow
class TestDisk:
    def shell(self, script: str, data: Path, tmp_path: Path) -> str:
        """Runs a script on an empty tmpfs `disk` of 1 MB; `train` starts or continues the run."""
        (tmp_path / "disk").mkdir()
        command = f"{sys.executable} -c 'from egattn.cli import main; main()' train"
        train = f"{command} disk/run --data {data} {TRAIN} --preset sm_ln_g --steps 6"
        prologue = f"mount -t tmpfs -o size=1m tmpfs disk; train() {{ {train} 2>&1; }}\n"
        result = subprocess.run(
            ["unshare", "-rm", "bash", "-c", prologue + script],
            cwd=tmp_path,
            text=True,
            capture_output=True,
            check=False,
        )
        return result.stdout + result.stderr

    def test_full_disk_stops_in_one_line_and_continues_with_room(self, data, tmp_path):
        again = "mount -o remount,size=64m disk; train; echo status $?; ls disk/run/checkpoints"
        output = self.shell(f"train; echo status $?; {again}", data, tmp_path)
        first, second = output.split("status 2\n")
        room = r"about [\d,]+ bytes needed, [\d,]+ free"
        line = rf"\negattn train: no space left for checkpoint 4 in \S+: {room}\n$"
        assert re.search(line, first)
        assert "resumed at step 2" in second
        assert second.endswith("status 0\n2\n4\n6\n")

    def test_read_only_directory_is_one_line(self, data, tmp_path):
        script = "train; mount -o remount,ro disk; train; echo status $?"
        output = self.shell(script.replace("size=1m", "size=64m"), data, tmp_path)
        assert re.search(
            r"\negattn train: [^\n]*[Rr]ead-only file system[^\n]*\nstatus 2\n$", output
        )
