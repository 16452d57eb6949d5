"""Nothing is claimed, deleted or cut before a run is known to start; then as little as can be."""

import dataclasses
import errno
import fcntl
import json
import os
import shutil
from pathlib import Path

import jax.numpy as jnp
import numpy as np
import pytest

from egattn.run import RunConfig, execute
from tests.run.test_loop import Device, counting


@pytest.fixture
def config(tmp_path) -> RunConfig:
    return RunConfig(tmp_path / "run", steps=6, log_every=1, checkpoint_every=2, keep_checkpoints=9)


@pytest.fixture
def run(config) -> Path:
    """A finished run with checkpoints 2, 4 and 6."""
    train(config)
    return config.run


def train(config: RunConfig, **more) -> None:
    execute(config, lambda: counting(config, Device(0.1).step, **more))


def content(directory: Path) -> dict[str, bytes | None]:
    paths = sorted(directory.rglob("*"))
    return {str(p.relative_to(directory)): p.read_bytes() if p.is_file() else None for p in paths}


def steps(run: Path, kind: str) -> list[int]:
    lines = map(json.loads, (run / "metrics.jsonl").read_text().splitlines())
    return [line["step"] for line in lines if line["kind"] == kind]


def refused(
    config: RunConfig, error: type[Exception] | tuple[type[Exception], ...], match: str
) -> None:
    before = content(config.run)
    with pytest.raises(error, match=match):
        train(config)
    assert content(config.run) == before


def checkpoints(run: Path) -> list[Path]:
    return [run / "checkpoints" / str(step) for step in (2, 4, 6)]


def empty(checkpoint: Path) -> None:
    for path in checkpoint.rglob("*"):
        if path.is_file():
            path.unlink()


def thin_out(checkpoint: Path) -> None:
    """Leaves some files, among them the one that a save writes last."""
    for path in (checkpoint / "state").rglob("*"):
        if path.is_file():
            path.unlink()


def unseal(checkpoint: Path) -> None:
    (checkpoint / "checksums.json").unlink()


def forget_saves(run: Path) -> None:
    """Makes it a run directory of a version that did not record its saves."""
    lines = (run / "metrics.jsonl").read_text().splitlines(keepends=True)
    (run / "metrics.jsonl").write_text("".join(x for x in lines if '"save"' not in x))


class TestLostCheckpoints:
    @pytest.mark.parametrize("harm", [empty, thin_out, unseal, shutil.rmtree])
    def test_all_of_them(self, config, run, harm):
        for path in checkpoints(run):
            harm(path)
        refused(config, FileNotFoundError, r"no checkpoint in \S+ is intact")

    def test_their_directory(self, config, run):
        shutil.rmtree(run / "checkpoints")
        refused(config, FileNotFoundError, "the records say that step 6 was saved; to begin again")

    def test_of_a_version_that_did_not_record_saves(self, config, run):
        forget_saves(run)
        shutil.rmtree(run / "checkpoints")
        # By the last step, 6, the save of 4 was done; that of 6 may have been killed.
        refused(config, FileNotFoundError, "the records say that step 4 was saved")

    def test_one_by_one(self, config, run, capsys):
        for step, before in ((6, 4), (4, 2)):
            empty(run / "checkpoints" / str(step))
            shutil.rmtree(run / "checkpoints" / str(step + 2), ignore_errors=True)
            train(config)
            assert f"resumed at step {before}" in capsys.readouterr().out
            assert steps(run, "train") == [1, 2, 3, 4, 5, 6]
        for path in checkpoints(run):
            empty(path)
        refused(config, FileNotFoundError, "step 6 was saved")

    def test_the_newest_is_gone_is_said(self, config, run, capsys):
        shutil.rmtree(run / "checkpoints" / "6")
        train(config)
        output = capsys.readouterr().out
        assert "checkpoint 6 is gone, which the records say was saved" in output
        assert "resumed at step 4" in output

    @pytest.mark.parametrize("lose", [lambda run: None, forget_saves, "metrics.jsonl"])
    def test_without_its_seal_it_is_kept(self, config, run, lose, capsys):
        """Whether or not the records tell that its save was completed."""
        if isinstance(lose, str):
            (run / lose).unlink()
        else:
            lose(run)
        newest = run / "checkpoints" / "6"
        unseal(newest)
        before = content(newest)
        train(config)
        assert f"moved to {run / 'damaged' / '6'}" in capsys.readouterr().out
        assert content(run / "damaged" / "6") == before

    def test_what_a_killed_save_has_left_is_removed(self, config, run, capsys):
        lines = (run / "metrics.jsonl").read_text().splitlines(keepends=True)
        kept = "".join(x for x in lines if '"save", "step": 6' not in x)
        (run / "metrics.jsonl").write_text(kept)
        unseal(run / "checkpoints" / "6")
        train(config)
        assert "checkpoint 6 is not intact: it has no checksums.json" in capsys.readouterr().out
        assert not (run / "damaged").exists()

    def test_records_lost_but_checkpoints_there(self, config, run, capsys):
        (run / "metrics.jsonl").unlink()
        train(dataclasses.replace(config, log_every=2))
        assert "resumed at step 6" in capsys.readouterr().out
        other = dataclasses.replace(config, steps=9)
        refused(other, ValueError, "holds another run: steps: 6 != 9")


class TestDamagedFiles:
    BAD_LINES = (
        b"\0" * 40,
        b'{"kind": "train", "st',
        b"[1]",
        b'{"kind": "train", "step": "x"}',
        b"[" * 100_000,
        b'{"kind": "\xff"}',
    )

    @pytest.mark.parametrize("name", ["metrics.jsonl", "nonfinite.jsonl"])
    @pytest.mark.parametrize("line", BAD_LINES, ids=range(len(BAD_LINES)))
    def test_a_line_within_the_records(self, config, run, name, line):
        # Or else there would be nothing to cut.
        shutil.rmtree(run / "checkpoints" / "6")
        good = b'{"kind": "train", "step": 1, "action": "skipped"}\n'
        (run / name).write_bytes(good + line + b"\n" + good)
        refused(config, ValueError, rf"{name} line 2(:| is not JSON)")

    @pytest.mark.parametrize(
        ("text", "match"),
        [
            (b"", "config.json is not JSON"),
            (b"\xff\xfe\x00", "config.json is not JSON"),
            (b"[" * 100_000, "config.json is not JSON"),
            (b"[]", r"config.json: expected an object, got \[\]"),
            (b'{"steps": 6}', "config.json: missing key 'run'"),
            (b'{"stepz": 6}', "config.json: unknown key 'stepz'; did you mean 'steps'"),
        ],
    )
    def test_the_config(self, config, run, text, match):
        (run / "config.json").write_bytes(text)
        refused(config, ValueError, match)

    @pytest.mark.parametrize("name", ["config.json", "metrics.jsonl", "nonfinite.jsonl"])
    def test_a_directory_in_a_file_s_place(self, config, run, name):
        shutil.rmtree(run / name) if (run / name).is_dir() else None
        (run / name).unlink(missing_ok=True)
        (run / name).mkdir()
        refused(config, (OSError, ValueError), "Is a directory|not a run directory")


class TestFailedStarts:
    def test_a_full_disk_at_the_very_first_write(self, config):
        config.run.mkdir()
        (config.run / "config.json.partial").symlink_to("/dev/full")
        with pytest.raises(OSError, match=r"No space left on device: '\S+config.json.partial'"):
            train(config)
        assert [path.name for path in config.run.iterdir()] == [".lock"]
        train(config)
        assert steps(config.run, "save") == [2, 4, 6]

    def test_what_a_killed_first_write_has_left(self, config):
        config.run.mkdir()
        (config.run / "config.json.partial").write_text("{")
        train(config)
        assert steps(config.run, "save") == [2, 4, 6]

    def test_too_little_memory(self, config):
        def step(state, batch):
            return state, {"loss": jnp.zeros(2**50, jnp.uint8)}

        with pytest.raises(MemoryError, match="too little memory for the batch"):
            execute(config, lambda: counting(config, step))
        assert not config.run.exists()
        train(dataclasses.replace(config, steps=3))

    def test_a_trace_of_a_first_step_that_fails_claims_nothing(self, config):
        def step(state, batch):
            raise ValueError("too large")

        traced = dataclasses.replace(config, profile=(1, 2))
        with pytest.raises(ValueError, match="too large"):
            execute(traced, lambda: counting(traced, step))
        assert [path.name for path in config.run.iterdir()] == ["profile"]
        train(dataclasses.replace(config, steps=3))

    def test_files_of_others_are_left_alone(self, config):
        config.run.mkdir()
        (config.run / "thesis.tex").write_text("")
        refused(config, ValueError, "exists and is not a run directory")


class TestLocks:
    NONE = (errno.ENOSYS, errno.EOPNOTSUPP, errno.ENOLCK)

    @pytest.mark.parametrize("code", NONE)
    @pytest.mark.parametrize("ranges", [False, True])
    def test_a_file_system_without_locks(self, config, monkeypatch, capsys, code, ranges):
        """None of its own, and with and without locks of ranges."""

        def fails(file, how):
            raise OSError(code, os.strerror(code))

        monkeypatch.setattr(fcntl, "flock", fails)
        if not ranges:
            monkeypatch.setattr(fcntl, "lockf", fails)
        train(config)
        said = f"{config.run} is on a file system without locks: nothing but you keeps" in (
            capsys.readouterr().err
        )
        assert said is not ranges

    def test_a_lock_that_fails_is_named(self, config, monkeypatch):
        def fails(file, how):
            raise OSError(errno.EIO, os.strerror(errno.EIO))

        monkeypatch.setattr(fcntl, "flock", fails)
        with pytest.raises(OSError, match=r"cannot be locked: Input/output error: '\S+\.lock'"):
            train(config)
        assert {path.name for path in config.run.iterdir()} <= {".lock"}


def test_it_goes_on_with_numbers_that_change_nothing(config, run, capsys):
    """What is about where and how; the records keep their shape."""
    again = dataclasses.replace(config, log_every=3, checkpoint_every=1, keep_checkpoints=1)
    train(again)
    assert "resumed at step 6" in capsys.readouterr().out
    assert np.all(np.diff(steps(run, "train")) == 1)
