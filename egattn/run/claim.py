"""One trainer at a time on a run directory, always the same run, and nothing lost by starting."""

import contextlib
import os
import shutil
from collections.abc import Iterator
from typing import NamedTuple

import jax
import numpy as np
from jax.experimental import multihost_utils

from egattn._config import changes
from egattn.run.config import RunConfig
from egattn.run.directory import RunDirectory
from egattn.run.integrity import is_sealed
from egattn.run.lines import drop_after, read_lines
from egattn.run.lock import locked


class Claim(NamedTuple):
    """What a start finds in a run directory; nothing in it has been changed yet."""

    directory: RunDirectory
    config: RunConfig
    step: int
    """Steps done: of the newest intact checkpoint, or 0."""
    problems: dict[int, str]
    """What is wrong with newer ones."""

    def begin(self) -> list[str]:
        """Makes the directory this run's, once it is known to start.

        Writes the config, puts newer checkpoints aside and removes records of steps that will be
        computed again. Returns a line for everything that was put aside.
        """
        if jax.process_index() != 0:
            return []
        saved, before = self.directory.saved(), self._before()
        lines = [f"{line}; {self._put_aside(s, saved)}" for s, line in self.problems.items()]
        if saved > self.step and saved not in self.problems:
            lines.append(f"checkpoint {saved} is gone, which the records say was saved")
        if before and list(changes(before, self.config)):
            lines.append(f"{self.directory.path} held another run, of which no step was saved")
        for path in self.directory.records:
            drop_after(path, self.step)
        # After the records: with another config they would tell of saves that were never due.
        self.directory.write_config(self.config)
        return lines

    def _before(self) -> RunConfig | None:
        """The config that the directory has held."""
        found = self.directory.config.exists()
        return self.directory.read_config(type(self.config)) if found else None

    def _put_aside(self, step: int, saved: int) -> str:
        """Removes what a killed save has left, if the records tell; moves anything else."""
        path = self.directory.checkpoint(step)
        if 0 < saved < step and not is_sealed(path):
            shutil.rmtree(path)
            return "removed"
        target = self.directory.damaged / str(step)
        shutil.rmtree(target, ignore_errors=True)
        target.parent.mkdir(exist_ok=True)
        os.replace(path, target)
        return f"moved to {target}"


@contextlib.contextmanager
def claimed(config: RunConfig) -> Iterator[Claim]:
    """Holds the run directory for this process; of several processes of a job the first holds it.

    Raises:
      ValueError: If the directory holds another run or something else, has lost its checkpoints, or
        another process holds it.
      FileNotFoundError: If there were completed checkpoints, and none is intact.
    """
    directory = RunDirectory(config.run)
    if jax.process_index() != 0:
        yield Claim(directory, config, _told(0), {})
        return
    if not directory.config.exists() and not directory.is_empty():
        raise ValueError(f"{directory.path} exists and is not a run directory")
    new = not directory.path.exists()
    with locked(directory.lock) as free:
        if not free:
            raise ValueError(f"another process is training {directory.path}")
        try:
            step, problems = _examine(directory, config)
            yield Claim(directory, config, _told(step), problems)
        finally:
            if new and directory.is_empty():
                # A trace of the first step may be there.
                with contextlib.suppress(OSError):
                    directory.lock.unlink()
                    directory.path.rmdir()


def _told(step: int) -> int:
    """What process 0 has found, on all."""
    if jax.process_count() == 1:
        return step
    return int(multihost_utils.broadcast_one_to_all(np.int32(step)))


def _examine(directory: RunDirectory, config: RunConfig) -> tuple[int, dict[int, str]]:
    """Newest intact step, and what is wrong with newer ones; changes nothing."""
    if not directory.config.exists():
        return 0, {}
    before = directory.read_config(type(config))
    for path in directory.records:
        read_lines(path)
    step, problems = directory.newest()
    saved = directory.saved() or _surely_saved(directory, before)
    if step is None and saved:
        what = next(iter(problems.values()), "there is none")
        raise FileNotFoundError(
            f"no checkpoint in {directory.checkpoints} is intact ({what}), but the records say "
            f"that step {saved} was saved; to begin again use another directory, or remove this"
        )
    if step is not None:
        _check_same(directory, before, config)
    return step or 0, problems


def _surely_saved(directory: RunDirectory, config: RunConfig) -> int:
    """What the records of a version that did not note its saves tell: by then the first was done.

    One save is under way at a time, and a step is logged after the save before it was begun.
    """
    steps = [record.get("step", 0) for record in read_lines(directory.metrics)]
    last, every = max(steps, default=0), config.checkpoint_every
    return (last // every - 1) * every if last >= 2 * every else 0


def _check_same(directory: RunDirectory, before: RunConfig, config: RunConfig) -> None:
    differ = list(changes(before, config))
    if not differ:
        return
    lines = "; ".join(f"{name}: {old} != {new}" for name, old, new in differ)
    raise ValueError(f"{directory.path} holds another run: {lines}{config.advice(before)}")
