"""The directory of a run: what its files are called, and how they are read."""

import dataclasses
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

from egattn._config import local_path, parse, parse_json, to_json
from egattn.run.integrity import being_read, check_intact, newest_intact, saved_steps
from egattn.run.lines import read_lines, replaced
from egattn.run.signals import say

_T = TypeVar("_T")


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
    def records(self) -> tuple[Path, Path]:
        """Both files of records."""
        return self.metrics, self.nonfinite

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
        tree = parse_json(self.config.read_bytes(), str(self.config))
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
        self, read: Callable[[Path], _T], step: int | None = None, below: float = math.inf
    ) -> tuple[int, _T]:
        """Reads one checkpoint, by default the newest intact one.

        Says on stderr which newer ones are not intact. A run that goes on does not delete what is
        being read; where the file system has no locks it may, and then the next one is read.

        Args:
          read: Reads the directory of one.
          step: Which one.
          below: Only steps below this one count.

        Returns:
          Its step, and what `read` returned.

        Raises:
          FileNotFoundError: If there is no such checkpoint, or it is not intact.
        """
        while True:
            before = self.saved_steps()
            try:
                found = self._newest_said(below) if step is None else self._checked(step)
                with being_read(self.checkpoint(found)):
                    return found, read(self.checkpoint(found))
            except Exception:
                # Orbax raises many things where a file is gone.
                if self.saved_steps() == before:
                    raise

    def _checked(self, step: int) -> int:
        check_intact(self.checkpoints, step)
        return step

    def _newest_said(self, below: float) -> int:
        step, skipped = self.newest(below)
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
        records = read_lines(self.metrics)
        return max((r.get("step", 0) for r in records if r.get("kind") == "save"), default=0)

    def is_empty(self) -> bool:
        """Whether there is nothing here but what a start that failed can leave."""
        if not self.path.exists():
            return True
        leftovers = {self.lock.name, self.profile.name, f"{self.config.name}.partial"}
        return self.path.is_dir() and {p.name for p in self.path.iterdir()} <= leftovers

    def saved_steps(self) -> list[int]:
        """Numbers of the checkpoints, complete or not, ascending."""
        return saved_steps(self.checkpoints)
