"""Locks of files, which end with their process, however that ends."""

import contextlib
import errno
import fcntl
import os
from collections.abc import Iterator
from pathlib import Path
from typing import IO

from egattn.run.signals import say

# What file systems without such locks answer.
_NO_LOCKS = (errno.ENOSYS, errno.EOPNOTSUPP, errno.ENOLCK, errno.EINVAL)


@contextlib.contextmanager
def locked(path: Path, *, wait: bool = False) -> Iterator[bool]:
    """Holds the lock of a file, made if missing together with its directories.

    Where the file system has no locks a line on stderr says that nothing keeps others out.

    Args:
      path: The file.
      wait: Whether to wait for another process that holds it.

    Yields:
      Whether this process holds it.

    Raises:
      OSError: If the file cannot be made.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    how = fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB)
    # Writable, or networked file systems have no lock.
    with path.open("a+b") as file:
        held = _acquire(file, path, how)
        if held is None:
            say(
                f"{path.parent} is on a file system without locks: nothing but you keeps a second "
                "process out of it",
                error=True,
            )
        yield held is not False


@contextlib.contextmanager
def in_use(path: Path, *, alone: bool = False) -> Iterator[bool]:
    """Holds the lock of a file that is there: by all who read, or by one alone, who removes it.

    Where the file system has no locks, everybody holds it.

    Args:
      path: The file.
      alone: Whether to hold it only if nobody else does; otherwise waits.

    Yields:
      Whether this process holds it, and the file is still there.

    Raises:
      OSError: If it cannot be opened.
    """
    how = fcntl.LOCK_EX | fcntl.LOCK_NB if alone else fcntl.LOCK_SH
    with path.open("r+b" if alone else "rb") as file:
        yield _acquire(file, path, how) is not False


def _acquire(file: IO[bytes], path: Path, how: int) -> bool | None:
    """Whether the lock is held; None where there are no locks."""
    # Some networked file systems have locks of ranges only.
    for lock in (fcntl.flock, fcntl.lockf):
        try:
            lock(file, how)
        except OSError as error:
            if error.errno in (errno.EWOULDBLOCK, errno.EACCES):
                return False
            if error.errno not in _NO_LOCKS:
                what = f"cannot be locked: {error.strerror}"
                raise OSError(error.errno, what, str(path)) from None
        else:
            # Whoever held it may have renamed or removed the file since it was opened.
            return path.exists() and path.stat().st_ino == os.fstat(file.fileno()).st_ino
    return None
