"""Whether runs and data can live in a directory."""

import os
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path

from egattn.doctor.row import Row, failed
from egattn.run.lock import locked

# A checkpoint of GPT-2 small with its optimiser is 1.5 GB, and the next is written before it goes.
_LEAST_FREE = 3_000_000_000
_WRITTEN = 16 * 2**20
_REPLACEMENTS = 100

# What a second process does; status 9: another one has the lock.
_LOCK = """
import pathlib, sys
from egattn.run.lock import locked
with locked(pathlib.Path(sys.argv[1])) as held:
    sys.exit(0 if held else 9)
"""


def check_directory(path: Path) -> list[Row]:
    """Rows for writing, free space, locks and renames in a directory."""
    rows = [_row("free disk", _free, path)]
    try:
        temporary = tempfile.TemporaryDirectory(
            prefix=".egattn-doctor-", dir=path, ignore_cleanup_errors=True
        )
    except OSError as error:
        return [*rows, failed("writable", error)]
    with temporary as name:
        checks = {"written and read back": _write, "lock": _lock, "rename": _replace}
        rows += [_row(what, check, Path(name)) for what, check in checks.items()]
    return rows


def _row(name: str, check: Callable[[Path], tuple[bool, str]], path: Path) -> Row:
    try:
        return Row(name, *check(path))
    except (OSError, subprocess.SubprocessError) as error:
        return failed(name, error)


def _free(path: Path) -> tuple[bool, str]:
    free = shutil.disk_usage(path).free
    return free >= _LEAST_FREE, f"{free / 1e9:.1f} GB, wanted {_LEAST_FREE / 1e9:.0f} GB"


def _write(path: Path) -> tuple[bool, str]:
    """Bytes, and their directory, are on the disk when fsync says so."""
    data, file = os.urandom(_WRITTEN), path / "data"
    start = time.perf_counter()
    with file.open("wb") as out:
        out.write(data)
        out.flush()
        os.fsync(out.fileno())
    directory = os.open(path, os.O_RDONLY)
    try:
        os.fsync(directory)
    finally:
        os.close(directory)
    seconds = time.perf_counter() - start
    if file.read_bytes() != data:
        return False, "other bytes come back than were written"
    return True, f"{_WRITTEN / 1e6:.0f} MB with fsync in {seconds:.2f} s"


def _lock(path: Path) -> tuple[bool, str]:
    """The lock of runs keeps a second process out while it is held, and lets it in afterwards."""
    file = path / "lock"
    with locked(file) as held:
        during = _lock_elsewhere(file)
    after = _lock_elsewhere(file)
    if not held:
        return False, "a lock that nobody else knows of is held"
    if during == 0:
        return False, "it keeps no second process out: two trainers could share a run"
    if (during, after) != (9, 0):
        return False, f"a second process ends with {during}, after release with {after}"
    return True, "keeps a second process out"


def _lock_elsewhere(file: Path) -> int:
    command = [sys.executable, "-c", _LOCK, str(file)]
    return subprocess.run(command, stderr=subprocess.DEVNULL, timeout=30).returncode


def _replace(path: Path) -> tuple[bool, str]:
    """While a file is replaced again and again, a reader finds one content or the other."""
    file, new = path / "file", path / "file.partial"
    contents = [bytes([i]) * 4096 for i in (1, 2)]
    file.write_bytes(contents[0])
    wrong: list[str] = []
    done = threading.Event()

    def read() -> None:
        while not done.is_set():
            try:
                if file.read_bytes() not in contents:
                    wrong.append("a reader found neither the old file nor the new")
            except OSError as error:
                wrong.append(f"a reader found {type(error).__name__}")

    reader = threading.Thread(target=read, daemon=True)
    reader.start()
    try:
        for i in range(1, _REPLACEMENTS + 1):
            new.write_bytes(contents[i % 2])
            os.replace(new, file)
            if new.exists() or file.read_bytes() != contents[i % 2]:
                wrong.append("the new file is not in the old one's place")
    finally:
        done.set()
        reader.join(timeout=30)
    return not wrong, wrong[0] if wrong else f"atomic for a reader, {_REPLACEMENTS} times"
