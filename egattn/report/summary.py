"""Numbers that compare runs: one row per run, and the settings in which they differ."""

import dataclasses
import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from egattn.entropy import range_shares
from egattn.report.document import ABSENT
from egattn.report.runs import RunLog, load_runs


@dataclasses.dataclass(frozen=True)
class Row:
    """One run in the comparison; None where its files say nothing, NaN where not finite."""

    name: str
    """Label, distinct among the runs."""
    preset: str | None
    """Architecture that the model started from."""
    parameters: int | None
    """Number of parameters."""
    step: int
    """Last step recorded."""
    steps: int | None
    """Steps that the run is to take."""
    tokens: int | None
    """Training tokens seen up to that step."""
    evaluated_at: int | None
    """Step of the last evaluation."""
    windows: int | None
    """Validation windows of the last evaluation."""
    loss: float | None
    """Validation cross entropy, nats per token."""
    perplexity: float | None
    """Its exponential."""
    delta: float | None
    """Perplexity against the first run's, percent."""
    bits_per_byte: float | None
    """Validation cross entropy in bits per byte of text."""
    shares: tuple[float, ...] | None
    """Share of heads in each entropy range, lowest first, see `egattn.entropy.range_counts`."""
    tokens_per_second: float | None
    """Median over the logged steps."""


def comparison(paths: Sequence[Path]) -> list[Row]:
    """Compares run directories.

    Args:
      paths: The directories; the first is the one that others are compared with.

    Returns:
      One row per directory, in the same order.

    Raises:
      FileNotFoundError: If a directory is missing or is not a run's.
      ValueError: If a file does not hold what a run writes.
    """
    return compare(load_runs(paths))


def compare(logs: Sequence[RunLog]) -> list[Row]:
    """Compares loaded runs, see `comparison`."""
    rows = [_row(log) for log in logs]
    first = rows[0].perplexity
    return [dataclasses.replace(row, delta=_delta(row.perplexity, first)) for row in rows]


def summary_lines(paths: Sequence[Path]) -> list[str]:
    """Compares run directories as a table for the terminal.

    Args:
      paths: The directories; the first is the one that others are compared with.

    Returns:
      A header, then a line per run: validation loss (nats per token), perplexity, bits per byte
      and the perplexity's difference from the first run's in percent; then what `notes` says.

    Raises:
      FileNotFoundError: If a directory is missing or is not a run's.
      ValueError: If a file does not hold what a run writes.
    """
    rows = comparison(paths)
    table = [("run", "validation loss", "perplexity", "bits per byte", "delta %")]
    table += [(row.name, *scores(row, first=i == 0)) for i, row in enumerate(rows)]
    widths = [max(map(len, column)) for column in zip(*table, strict=True)]
    lines = [
        "  ".join([name.ljust(widths[0]), *map(str.rjust, numbers, widths[1:])])
        for name, *numbers in table
    ]
    return lines + notes(rows)


def notes(rows: Sequence[Row]) -> list[str]:
    """A sentence per run whose numbers are of an earlier step than its last one, or than planned.

    A run that diverged was last evaluated before it did.
    """
    sentences = []
    for row in rows:
        if row.steps is not None and row.step < row.steps:
            sentences.append(f"{row.name} stands at step {row.step:,} of {row.steps:,}.")
        if row.evaluated_at is not None and row.evaluated_at < row.step:
            sentences.append(
                f"{row.name} was last evaluated at step {row.evaluated_at:,}, "
                f"its last one is {row.step:,}."
            )
    return sentences


def scores(row: Row, first: bool) -> tuple[str, str, str, str]:
    """Formats a run's loss, perplexity, bits per byte and difference from the first run."""
    return (
        "not evaluated" if row.evaluated_at is None else number(row.loss, "{:.4f}"),
        number(row.perplexity, "{:.3f}" if (row.perplexity or 0) < 1e4 else "{:.3g}"),
        number(row.bits_per_byte, "{:.4f}"),
        "reference" if first else number(row.delta, "{:+.1f}"),
    )


def number(value: float | None, form: str) -> str:
    """Formats a number of a table, which may be absent (None) or not finite."""
    if value is None:
        return ABSENT
    return form.format(value) if math.isfinite(value) else "not finite"


def differing(logs: Sequence[RunLog]) -> list[tuple[str, list[str]]]:
    """Returns the config's leaves that differ, by dotted name, each with its value per run."""
    names = dict.fromkeys(name for log in logs for name in log.config if name != "run")
    table = [(name, [_value(log.config, name) for log in logs]) for name in names]
    return [(name, values) for name, values in table if len(set(values)) > 1]


def _row(log: RunLog) -> Row:
    evaluated = bool(log.validation)
    last = {name: column[-1] for name, column in log.validation.items()}
    per_step = log.start("tokens_per_step")
    speeds = log.train["tokens_per_second"] if log.train else np.array([])
    speeds = speeds[np.isfinite(speeds)]
    heads = log.final_entropy
    return Row(
        name=log.label,
        preset=log.config.get("preset"),
        parameters=log.start("parameters"),
        step=log.last_step,
        steps=log.config.get("steps"),
        tokens=None if per_step is None else log.last_step * per_step,
        evaluated_at=int(last["step"]) if evaluated else None,
        windows=int(last["windows"]) if evaluated else None,
        loss=float(last["loss"]) if evaluated else None,
        perplexity=float(last["perplexity"]) if evaluated else None,
        delta=None,
        bits_per_byte=float(last["bits_per_byte"]) if evaluated else None,
        shares=None if heads is None else tuple(range_shares(heads).tolist()),
        tokens_per_second=float(np.median(speeds)) if speeds.size else None,
    )


def _delta(perplexity: float | None, first: float | None) -> float | None:
    if not perplexity or not first or not np.isfinite([perplexity, first]).all():
        return None
    return 100 * (perplexity / first - 1)


def _value(config: dict[str, Any], name: str) -> str:
    if name not in config:
        return ABSENT
    value = config[name]
    return value if isinstance(value, str) else json.dumps(value)
