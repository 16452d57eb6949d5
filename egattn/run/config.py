"""What every run is told, whatever it computes."""

import dataclasses
from pathlib import Path

import tyro

from egattn._config import RUNTIME
from egattn.run.directory import local_path
from egattn.run.processes import DistributedConfig


@dataclasses.dataclass(frozen=True)
class RunConfig:
    """How long a run is and what it leaves behind; a program adds what it computes.

    Fields with the metadata `RUNTIME` may differ when a run goes on: where and how it is computed,
    as opposed to what.
    """

    run: tyro.conf.Positional[Path] = dataclasses.field(metadata=RUNTIME)
    """Run directory; made if missing, resumed if it holds this same run."""
    steps: int = 1000
    """Optimiser steps."""
    skip_nonfinite: int = dataclasses.field(default=0, metadata=RUNTIME)
    """Steps with numbers that are not finite that may be left out; the run stops at the next
    one."""
    log_every: int = dataclasses.field(default=10, metadata=RUNTIME)
    """Steps between log records."""
    evaluate_every: int = dataclasses.field(default=100, metadata=RUNTIME)
    """Steps between evaluations; one more follows the last step."""
    checkpoint_every: int = dataclasses.field(default=100, metadata=RUNTIME)
    """Steps between checkpoints; the last step is always saved."""
    keep_checkpoints: int = dataclasses.field(default=3, metadata=RUNTIME)
    """Newest checkpoints kept."""
    profile: tuple[int, int] | None = dataclasses.field(default=None, metadata=RUNTIME)
    """First and last step of a trace of host and device, written to RUN/profile."""
    distributed: DistributedConfig = dataclasses.field(
        default_factory=DistributedConfig, metadata=RUNTIME
    )
    """Other processes of the job."""

    def __post_init__(self):
        """Checks the values."""
        local_path(self.run)
        for name in ("steps", "log_every", "evaluate_every", "checkpoint_every"):
            self.check_at_least(name, 1)
        self.check_at_least("keep_checkpoints", 1)
        self.check_at_least("skip_nonfinite", 0)
        if self.profile and not 1 <= self.profile[0] <= self.profile[1] <= self.steps:
            first, last = self.profile
            raise ValueError(
                f"profile needs its first and last step within 1 to {self.steps}, "
                f"got {first} and {last}"
            )

    def check_at_least(self, name: str, least: int) -> None:
        """Raises ValueError unless a field has at least this value."""
        if not getattr(self, name) >= least:
            raise ValueError(f"{name} must be at least {least}, got {getattr(self, name)}")

    def advice(self, before: "RunConfig") -> str:
        """What a message adds that refuses to go on with a run, whose config was `before`."""
        return ""
