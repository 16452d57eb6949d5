"""Steps whose numbers are not finite: written down, and left out within a budget."""

from collections.abc import Callable
from typing import Any

import jax

from egattn.run.directory import RunDirectory
from egattn.run.lines import append_line, read_lines


class Nonfinite:
    """Counts the steps of a run that were not finite."""

    def __init__(self, directory: RunDirectory, budget: int):
        """Args: the run's, and how many such steps may be left out."""
        self._directory, self._path, self._budget = directory, directory.nonfinite, budget
        past = read_lines(self._path)
        self.skipped = sum(record["action"] == "skipped" for record in past)
        """Steps left out so far."""

    def found(
        self, step: int, record: dict[str, Any], what: str, good: Callable[[], int | None]
    ) -> str:
        """Writes a step down; returns a line that says so.

        Args:
          step: Its number.
          record: What the run's file gets to know of it.
          what: The same in words.
          good: Tells the newest intact checkpoint.

        Raises:
          FloatingPointError: If the budget is used up.
        """
        stops = self.skipped >= self._budget
        if jax.process_index() == 0:
            with self._path.open("ab") as file:
                action = "stopped" if stops else "skipped"
                append_line(file, {"step": step, "action": action, **record})
        if stops:
            saved = good()
            where = "none" if saved is None else self._directory.checkpoint(saved)
            raise FloatingPointError(
                f"training stopped at step {step}: {what}; last good checkpoint: {where}"
            )
        self.skipped += 1
        return f"step {step} left out ({self.skipped} of {self._budget}): {what}"
