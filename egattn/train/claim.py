"""One trainer at a time on a run directory, and always the same run."""

import contextlib
import fcntl
import os
from collections.abc import Iterator

import jax

from egattn.train.config import TrainConfig, differences, from_json, to_json


@contextlib.contextmanager
def claimed(config: TrainConfig) -> Iterator[None]:
    """Holds the run directory, made if missing, for this process.

    The lock is the kernel's and ends with the process, however it ends. Of several processes of
    one job the first holds it.

    Raises:
      ValueError: If the directory holds another run or something else, or another process holds
        it.
    """
    if jax.process_index() != 0:
        yield
        return
    path = config.run / "config.json"
    _make(config)
    # Writable, or networked file systems have no lock.
    with path.open("r+b") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise ValueError(f"another process is training {config.run}") from None
        yield


def _make(config: TrainConfig) -> None:
    path = config.run / "config.json"
    if path.is_file():
        differ = differences(from_json(path.read_text(encoding="utf-8")), config)
        if differ:
            raise ValueError(f"{config.run} holds another run: {'; '.join(differ)}")
        return
    if config.run.exists() and (not config.run.is_dir() or any(config.run.iterdir())):
        raise ValueError(f"{config.run} exists and is not a run directory")
    config.run.mkdir(parents=True, exist_ok=True)
    partial = path.with_suffix(".partial")
    partial.write_text(to_json(config), encoding="utf-8")
    os.replace(partial, path)
