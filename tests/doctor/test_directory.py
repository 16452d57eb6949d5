"""The doctor's look at a directory, with the faults that file systems have."""

import errno
import fcntl
import os
import resource
import shutil
import subprocess
import time
import types
from pathlib import Path

import pytest

from egattn.doctor.directory import check_directory


def states(path):
    return {row.name: row.ok for row in check_directory(path)}


def found(path, name):
    row = next(row for row in check_directory(path) if row.name == name)
    assert row.ok is False
    return row.found


def test_a_good_one_passes_and_is_left_as_it_was(tmp_path):
    (tmp_path / "data").write_text("the user's")
    names = ("free disk", "written and read back", "lock", "rename")
    assert states(tmp_path) == dict.fromkeys(names, True)
    assert [(x.name, x.read_text()) for x in tmp_path.iterdir()] == [("data", "the user's")]


def test_one_that_takes_no_file_is_wrong():
    proc = Path("/proc")
    if not proc.is_dir():
        pytest.skip("no /proc, which no one can write into")
    assert states(proc)["writable"] is False


@pytest.mark.skipif(os.geteuid() == 0, reason="root writes anywhere")
def test_a_read_only_one_is_wrong(tmp_path):
    tmp_path.chmod(0o555)
    assert "PermissionError" in found(tmp_path, "writable")
    tmp_path.chmod(0o755)


def test_little_space_is_wrong(tmp_path, monkeypatch):
    monkeypatch.setattr(shutil, "disk_usage", lambda path: types.SimpleNamespace(free=2e9))
    assert found(tmp_path, "free disk") == "2.0 GB, wanted 3 GB"


def test_a_limit_of_file_sizes_is_wrong(tmp_path):
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (2**20, hard))
    try:
        assert f"Errno {errno.EFBIG}" in found(tmp_path, "written and read back")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def test_a_failing_fsync_is_wrong(tmp_path, monkeypatch):
    def fsync(descriptor):
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    monkeypatch.setattr(os, "fsync", fsync)
    assert "Input/output error" in found(tmp_path, "written and read back")


def test_other_bytes_than_written_are_wrong(tmp_path, monkeypatch):
    monkeypatch.setattr(os, "fsync", lambda descriptor: os.truncate(tmp_data(tmp_path), 100))
    assert "other bytes" in found(tmp_path, "written and read back")


def tmp_data(path):
    return next(path.glob(".egattn-doctor-*/data"))


def refusing(code):
    def lock(file, operation):
        raise OSError(code, os.strerror(code))

    return lock


@pytest.mark.parametrize("code", [errno.ENOSYS, errno.ENOLCK, errno.EOPNOTSUPP])
def test_no_locks_are_wrong(tmp_path, monkeypatch, code):
    monkeypatch.setattr(fcntl, "flock", refusing(code))
    monkeypatch.setattr(fcntl, "lockf", refusing(code))
    assert "keeps no second process out" in found(tmp_path, "lock")


def test_an_error_of_the_lock_is_wrong(tmp_path, monkeypatch):
    monkeypatch.setattr(fcntl, "flock", refusing(errno.EIO))
    assert "Input/output error" in found(tmp_path, "lock")


def test_locks_that_keep_nobody_out_are_wrong(tmp_path, monkeypatch):
    monkeypatch.setattr(fcntl, "flock", lambda file, operation: None)
    assert "keeps no second process out" in found(tmp_path, "lock")


def test_a_lock_that_cannot_be_had_is_wrong(tmp_path, monkeypatch):
    monkeypatch.setattr(fcntl, "flock", refusing(errno.EWOULDBLOCK))
    assert "nobody else knows of" in found(tmp_path, "lock")


@pytest.mark.parametrize("status", [9, 1])
def test_locks_that_another_process_cannot_take_are_wrong(tmp_path, monkeypatch, status):
    ended = types.SimpleNamespace(returncode=status)
    monkeypatch.setattr(subprocess, "run", lambda *_, **__: ended)
    assert f"after release with {status}" in found(tmp_path, "lock")


def test_a_lock_that_waits_for_ever_is_wrong(tmp_path, monkeypatch):
    def run(command, **_):
        raise subprocess.TimeoutExpired(command, 30)

    monkeypatch.setattr(subprocess, "run", run)
    assert "TimeoutExpired" in found(tmp_path, "lock")


def test_a_rename_in_two_steps_is_wrong(tmp_path, monkeypatch):
    def replace(source, target):
        content = source.read_bytes()
        target.write_bytes(b"")
        time.sleep(1e-3)
        target.write_bytes(content)
        source.unlink()

    monkeypatch.setattr(os, "replace", replace)
    assert found(tmp_path, "rename") == "a reader found neither the old file nor the new"


def test_a_rename_that_does_nothing_is_wrong(tmp_path, monkeypatch):
    monkeypatch.setattr(os, "replace", lambda source, target: None)
    assert "not in the old one's place" in found(tmp_path, "rename")
