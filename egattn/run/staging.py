"""A directory that appears complete or not at all."""

import contextlib
import os
import shutil
from collections.abc import Iterator
from pathlib import Path

from egattn.run.lock import locked
from egattn.run.signals import active

_LOCK_NAME = ".lock"
INSIDE = ".partial"
"""Where a directory is filled that no other one can take the place of."""


@contextlib.contextmanager
def staged_directory(target: Path, last: str = "") -> Iterator[Path]:
    """Gives an empty sibling of `target` to fill, and renames it to `target` at the end.

    An error or a signal removes the sibling; a killed process leaves it, under a name that nobody
    takes for `target`, and the next run empties it. Where `target` is a mount point or the current
    directory, it is filled in `.partial` inside, and the entries are moved out.

    Args:
        target: The directory to make, which must not exist or be empty.
        last: The entry that is moved last, which says that all others are there.

    Yields:
        The directory to fill.

    Raises:
        OSError: The directory cannot be written, or another process is making it.
        Preempted: A signal came.
    """
    inside = target / INSIDE
    stays = target.is_dir() and (target.is_mount() or target.samefile(os.curdir) or inside.exists())
    staging = inside if stays else target.parent / f".{target.name}{INSIDE}"
    with locked(staging / _LOCK_NAME) as free:
        if not free:
            raise BlockingIOError(f"{target} is being prepared by another process; wait for it")
        moved: list[Path] = []
        with active().keeping():
            try:
                with active().waiting():
                    _clear(staging)
                    yield staging
                if stays:
                    _move_out(staging, last, moved)
                else:
                    os.replace(staging, target)
                    (target / _LOCK_NAME).unlink()
            except BaseException:
                if _moved_back(moved, target):
                    shutil.rmtree(staging, ignore_errors=True)
                raise


def _move_out(staging: Path, last: str, moved: list[Path]) -> None:
    entries = [path for path in staging.iterdir() if path.name != _LOCK_NAME]
    for path in sorted(entries, key=lambda path: path.name == last):
        os.replace(path, staging.parent / path.name)
        moved.append(path)
    shutil.rmtree(staging)


def _moved_back(moved: list[Path], target: Path) -> bool:
    """Undoes moves; what stays out beside `.partial` is known to be part of a directory."""
    for path in moved:
        with contextlib.suppress(OSError):
            os.replace(target / path.name, path)
    return not any(os.path.lexists(target / path.name) for path in moved)


def _clear(staging: Path) -> None:
    for path in staging.iterdir():
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        elif path.name != _LOCK_NAME:
            path.unlink()
