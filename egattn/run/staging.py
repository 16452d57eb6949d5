"""A directory that appears complete or not at all."""

import contextlib
import os
import shutil
from collections.abc import Iterator
from pathlib import Path

from egattn.run.lock import locked
from egattn.run.signals import active

_LOCK_NAME = ".lock"


@contextlib.contextmanager
def staged_directory(target: Path) -> Iterator[Path]:
    """Gives an empty sibling of `target` to fill, and renames it to `target` at the end.

    An error or a signal removes the sibling; a killed process leaves it, under a name that nobody
    takes for `target`, and the next run empties it.

    Args:
        target: The directory to make, which must not exist or be empty.

    Yields:
        The directory to fill.

    Raises:
        OSError: The directory cannot be written, or another process is making it.
        Preempted: A signal came.
    """
    staging = target.parent / f".{target.name}.partial"
    with locked(staging / _LOCK_NAME) as free:
        if not free:
            raise BlockingIOError(f"{target} is being prepared by another process; wait for it")
        try:
            with active().waiting():
                _clear(staging)
                yield staging
                os.replace(staging, target)
        except BaseException:
            shutil.rmtree(staging, ignore_errors=True)
            raise
        (target / _LOCK_NAME).unlink()


def _clear(staging: Path) -> None:
    for path in staging.iterdir():
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        elif path.name != _LOCK_NAME:
            path.unlink()
