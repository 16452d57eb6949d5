"""One process at a time: a lock that ends with its process, however that ends."""

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
    # Writable, or networked file systems have no lock.
    with path.open("a+b") as file:
        yield _acquire(file, path, wait)


def _acquire(file: IO[bytes], path: Path, wait: bool) -> bool:
    how = fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB)
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
    say(
        f"{path.parent} is on a file system without locks: nothing but you keeps a second process "
        "out of it",
        error=True,
    )
    return True
