"""What a run computes, as a value: functions that the loop calls."""

import math
from collections.abc import Callable, Iterable, Iterator
from typing import Any, NamedTuple

from rich.table import Table

from egattn.run.config import RunConfig
from egattn.run.records import Board

State = Any
"""Nested arrays: everything that a step changes."""


def loss_is_finite(metrics: dict[str, Any]) -> bool:
    """Whether a step's loss is; metrics on the host."""
    return math.isfinite(metrics["loss"])


def _loss_in_words(step: int, metrics: dict[str, Any]) -> str:
    return f"loss is {metrics['loss']}"


def _numbers(values: dict[str, Any]) -> str:
    return "  ".join(f"{n} {x:.4g}" for n, x in values.items() if isinstance(x, int | float))


class Describe(NamedTuple):
    """A task in words."""

    header: Callable[[State], Iterable[str | Table]] = lambda state: ()
    """What a start prints: devices, data, sizes; see `console` for common lines."""
    evaluation: Callable[[dict[str, Any]], str] = _numbers
    """An evaluation in one line."""
    nonfinite: Callable[[int, dict[str, Any]], str] = _loss_in_words
    """What is wrong with a step (its number, its metrics) that is not finite."""
    memory: str = "the batch"
    """What takes memory and what saves it, for a run that has too little."""


class Task(NamedTuple):
    """A training of anything, see `egattn.run.execute`."""

    config: RunConfig
    """What the run directory remembers, and goes on with only if it is the same."""
    target: State
    """Shape, dtype and sharding of every array of the state, as `jax.ShapeDtypeStruct`."""
    init: Callable[[], State]
    """Makes the state before the first step."""
    step: Callable[[State, Any], tuple[State, dict[str, Any]]]
    """Jitted: state (which it may donate) and batch to the next state and metrics: arrays or
    numbers, `loss` [] among them. Must not change the state where `is_finite` says no, if
    `RunConfig.skip_nonfinite` is to leave steps out."""
    batches: Callable[[int], Iterator[Any]]
    """Batches on the devices, from the one after so many steps on."""
    evaluate: Callable[[State, bool, Callable[[], None]], dict[str, Any]] | None = None
    """Evaluates a state, after the last step (True) on everything. Calls its last argument between
    pieces of work: it raises once the run is to stop."""
    is_finite: Callable[[dict[str, Any]], bool] = loss_is_finite
    """Whether a step's metrics are, on the host."""
    describe: Describe = Describe()
    """The task in words."""
    locate: Callable[[int, dict[str, Any]], dict[str, Any]] = lambda step, metrics: {}
    """What RUN/nonfinite.jsonl gets to know of a step that is not finite."""
    measure: Callable[[int, float], dict[str, Any]] = lambda updates, rate: {}
    """More for the record of a step: of its number, without steps left out, and units/s."""
    draw: Callable[[Board, str, int, dict[str, Any]], None] = lambda board, kind, step, values: None
    """More for TensorBoard: of a record's kind ("train", "validation"), step and values."""
    position: Callable[[int], dict[str, Any]] = lambda step: {"next_step": step + 1}
    """Where the data go on after so many steps, for the checkpoint."""
    about: Callable[[State], dict[str, Any]] = lambda state: {}
    """More for the record of a start, of the state at its beginning."""
    units_per_step: int = 1
    """How much a step processes."""
    unit: str = "batches"
    """What that is, in the plural."""
