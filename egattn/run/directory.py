"""The directory of a run: what its files are called, and how they are read."""

import dataclasses
import json
import math
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

from egattn._config import parse, to_json
from egattn.run.integrity import check_intact, newest_intact, saved_steps
from egattn.run.lines import read_lines, replaced
from egattn.run.signals import say

_T = TypeVar("_T")


def local_path(path: Path) -> Path:
    """Returns the path.

    Raises:
      ValueError: If it is an address, such as gs://bucket/x, which `Path` takes for a directory.
    """
    if re.match(r"[A-Za-z][A-Za-z0-9+.-]+:/", str(path)):
        address = str(path).replace(":/", "://", 1)
        raise ValueError(
            f"expected a path on this machine, got {address}: mount the bucket, or copy from and "
            "to it"
        )
    return path


@dataclasses.dataclass(frozen=True)
class RunDirectory:
    """A run directory; nothing is made or changed by asking."""

    path: Path

    def __post_init__(self):
        """Checks the path."""
        local_path(self.path)

    @property
    def config(self) -> Path:
        """What the run is."""
        return self.path / "config.json"

    @property
    def metrics(self) -> Path:
        """One record per line: starts, logged steps, evaluations, completed saves."""
        return self.path / "metrics.jsonl"

    @property
    def nonfinite(self) -> Path:
        """One record per step that was not finite."""
        return self.path / "nonfinite.jsonl"

    @property
    def checkpoints(self) -> Path:
        """One directory per checkpoint, named after its step."""
        return self.path.resolve() / "checkpoints"

    @property
    def damaged(self) -> Path:
        """Checkpoints that were found not to be intact."""
        return self.path.resolve() / "damaged"

    @property
    def tensorboard(self) -> Path:
        """Events for TensorBoard."""
        return self.path / "tensorboard"

    @property
    def profile(self) -> Path:
        """Traces of host and device."""
        return self.path / "profile"

    @property
    def lock(self) -> Path:
        """File whose lock a process holds that trains here."""
        return self.path / ".lock"

    def checkpoint(self, step: int) -> Path:
        """Directory of one checkpoint, there or not."""
        return self.checkpoints / str(step)

    def read_config(self, kind: type[_T]) -> _T:
        """Returns the config, a dataclass of type `kind`, with `run` where the directory is now.

        Raises:
          FileNotFoundError: If this is not a run directory.
          ValueError: If the config is not of that type.
        """
        if not self.config.is_file():
            raise FileNotFoundError(f"{self.path} is not a run directory: it has no config.json")
        try:
            tree = json.loads(self.config.read_bytes())
        except ValueError as error:
            raise ValueError(f"{self.config} is not JSON: {error}") from None
        config: Any = parse(kind, tree, str(self.config))
        return dataclasses.replace(config, run=self.path)

    def write_config(self, config: Any) -> None:
        """Writes the config, at once and whole."""
        with replaced(self.config) as file:
            file.write(to_json(config).encode())

    def newest(self, below: float = math.inf) -> tuple[int | None, dict[int, str]]:
        """As `newest_intact`: the newest intact checkpoint, and what is wrong with newer ones."""
        return newest_intact(self.checkpoints, below)

    def read_checkpoint(
        self, read: Callable[[Path], _T], step: int | None = None
    ) -> tuple[int, _T]:
        """Reads one checkpoint, by default the newest intact one.

        Says on stderr which newer ones are not intact. A run that goes on may delete a checkpoint
        that is being read: then the next one is.

        Args:
          read: Reads the directory of one.
          step: Which one.

        Returns:
          Its step, and what `read` returned.

        Raises:
          FileNotFoundError: If there is no such checkpoint, or it is not intact.
        """
        while True:
            before = self.saved_steps()
            try:
                found = self._newest_said() if step is None else self._checked(step)
                return found, read(self.checkpoint(found))
            except Exception:
                # Orbax raises many things where a file is gone.
                if step is not None or self.saved_steps() == before:
                    raise

    def _checked(self, step: int) -> int:
        check_intact(self.checkpoints, step)
        return step

    def _newest_said(self) -> int:
        step, skipped = self.newest()
        for line in skipped.values():
            say(line, error=True)
        if step is None:
            raise FileNotFoundError(f"no checkpoint in {self.checkpoints}")
        return step

    def saved(self) -> int:
        """Last step whose checkpoint the records say was completed, 0 if none.

        Raises:
          ValueError: If the records are damaged, naming the line.
        """
        return max(
            (r["step"] for r in read_lines(self.metrics) if r.get("kind") == "save"), default=0
        )

    def is_empty(self) -> bool:
        """Whether there is nothing here but what a start that failed can leave."""
        if not self.path.exists():
            return True
        leftovers = {self.lock.name, f"{self.config.name}.partial"}
        return self.path.is_dir() and {p.name for p in self.path.iterdir()} <= leftovers

    def saved_steps(self) -> list[int]:
        """Numbers of the checkpoints, complete or not, ascending."""
        return saved_steps(self.checkpoints)
