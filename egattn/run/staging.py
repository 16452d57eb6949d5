"""A directory that appears complete or not at all."""

import contextlib
import fcntl
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import IO

_LOCK_NAME = ".lock"


@contextlib.contextmanager
def staged_directory(target: Path) -> Iterator[Path]:
    """Gives an empty sibling of `target` to fill, and renames it to `target` at the end.

    An error removes the sibling; a killed process leaves it, under a name that nobody takes for
    `target`, and the next run empties it. The lock that tells the leftovers of a dead process from
    the work of a live one is released by the operating system, however the process ends.

    Args:
        target: The directory to make, which must not exist or be empty.

    Yields:
        The directory to fill.

    Raises:
        OSError: The directory cannot be written, or another process is making it.
    """
    staging = target.parent / f".{target.name}.partial"
    staging.mkdir(parents=True, exist_ok=True)
    with (staging / _LOCK_NAME).open("w") as lock:
        _acquire(lock, staging, target)
        try:
            _clear(staging)
            yield staging
            os.replace(staging, target)
        except BaseException:
            shutil.rmtree(staging)
            raise
        (target / _LOCK_NAME).unlink()


def _acquire(lock: IO[str], staging: Path, target: Path) -> None:
    message = f"{target} is being prepared by another process; wait for it to end"
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        raise BlockingIOError(message) from None
    # The process that held the lock may have renamed or removed the directory since it was opened.
    path = staging / _LOCK_NAME
    if not path.exists() or path.stat().st_ino != os.fstat(lock.fileno()).st_ino:
        raise BlockingIOError(message)


def _clear(staging: Path) -> None:
    for path in staging.iterdir():
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        elif path.name != _LOCK_NAME:
            path.unlink()
