"""Doctor: is this machine fit to train and measure on? The first command to run on a new one."""

import dataclasses
import os
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import tyro

from egattn.doctor.row import Part as Part
from egattn.doctor.row import Row as Row
from egattn.run.processes import DistributedConfig, join
from egattn.run.signals import active

# A part takes seconds; one that waits for a device or a disk that never answers takes for ever.
LIMIT = 300.0
"""Seconds after which a part has failed."""


@dataclasses.dataclass(frozen=True)
class DoctorConfig:
    """Says whether this machine is fit to train and measure on; status 1 if anything is wrong."""

    directory: tyro.conf.Positional[Path] = Path(".")
    """Where runs or data are to live."""
    json: bool = False
    """Print one JSON object instead of tables."""
    distributed: DistributedConfig = dataclasses.field(default_factory=DistributedConfig)
    """The other processes of the job, whose devices the collectives then include."""


def examine(config: DoctorConfig, limit: float | None = None) -> Iterator[Part]:
    """Checks this machine, part by part; a part that does not end is the last one.

    Args:
      config: What to look at.
      limit: Seconds that a part may take; default `LIMIT`.

    Yields:
      The parts, in the order of what they need: packages, directory, devices, jax, attention,
      collectives.

    Raises:
      ValueError: If the directory is none.
    """
    if not config.directory.is_dir():
        raise ValueError(f"expected a directory, got {config.directory}, which is none")
    limit = LIMIT if limit is None else limit
    join(config.distributed, active())
    for name, check in _checks(config).items():
        rows = _within(limit, check)
        if rows is None:
            yield Part(name, [Row(name, False, f"no answer in {limit:g} s")], stuck=True)
            return
        yield Part(name, rows)


def doctor(config: DoctorConfig) -> bool:
    """Examines this machine, prints what it finds, and says whether nothing is wrong.

    Raises:
      ValueError: If the directory is none.
    """
    from egattn.doctor.display import show_part, show_verdict, to_json

    start, parts = time.perf_counter(), []
    for part in examine(config):
        parts.append(part)
        if not config.json:
            show_part(part)
    seconds = time.perf_counter() - start
    print(to_json(parts, seconds)) if config.json else show_verdict(parts, seconds)
    if any(part.stuck for part in parts):
        # What does not answer would keep this process from ending in order.
        sys.stdout.flush()
        os._exit(1)
    return all(row.ok is not False for part in parts for row in part.rows)


def _checks(config: DoctorConfig) -> dict[str, Callable[[], list[Row]]]:
    from egattn.doctor.attention import check_attention
    from egattn.doctor.collectives import check_collectives
    from egattn.doctor.directory import check_directory
    from egattn.doctor.forms import check_forms
    from egattn.doctor.machine import check_devices, check_packages

    return {
        "packages": check_packages,
        "directory": lambda: check_directory(config.directory),
        "devices": check_devices,
        "jax": check_forms,
        "attention": check_attention,
        "collectives": check_collectives,
    }


def _within(limit: float, check: Callable[[], list[Row]]) -> list[Row] | None:
    """What a check returns, or None if it takes longer; its thread then ends with the process."""
    found: list[list[Row]] = []
    failure: list[BaseException] = []

    def work() -> None:
        try:
            found.append(check())
        except BaseException as error:
            failure.append(error)

    thread = threading.Thread(target=work, daemon=True)
    thread.start()
    thread.join(limit)
    if failure:
        raise failure[0]
    return found[0] if found else None
