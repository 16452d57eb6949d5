"""The loop: steps, and what is due after them."""

import collections
from collections.abc import Iterator
from typing import Any, NamedTuple

import jax
import numpy as np

from egattn.run.arrays import settle
from egattn.run.checkpoints import Saver
from egattn.run.console import Display
from egattn.run.nonfinite import Nonfinite
from egattn.run.pace import Pace
from egattn.run.processes import stops
from egattn.run.profiler import Profiler
from egattn.run.records import Board, Records
from egattn.run.signals import Preempted, StopRequest
from egattn.run.task import State, Task


class Tools(NamedTuple):
    """What a loop works with."""

    records: Records
    board: Board
    display: Display
    saver: Saver
    nonfinite: Nonfinite
    profiler: Profiler
    pace: Pace
    stop: StopRequest


class _Pending(NamedTuple):
    """A step whose metrics are on their way, and the copy to save if they are in order."""

    step: int
    metrics: dict[str, Any]
    copy: State | None


class Loop:
    """The steps of a run and what is due after them."""

    def __init__(self, task: Task, tools: Tools, first: int):
        """Args: what to compute, what with, and steps done before."""
        self._task, self._tools, self._config = task, tools, task.config
        self._done = self._saved = first
        self._pending: collections.deque[_Pending] = collections.deque()

    def run(
        self, state: State, source: Iterator[Any], metrics: dict[str, Any] | None
    ) -> dict[str, Any]:
        """Steps to the end, of which the first has been taken if there are `metrics` of it."""
        self._state, values, stop = state, None, self._tools.stop
        try:
            for step in range(self._done + 1, self._config.steps + 1):
                if metrics is None:
                    self._state, metrics = self._launch(step, source)
                values, metrics = self._finish(step, metrics) or values, None
            return self._last_values() if values is None else values
        except Preempted:
            self._save()
            raise Preempted(
                f"stopped by {stop.name} after step {self._done}, saved; the same command continues"
            ) from None

    def _launch(self, step: int, source: Iterator[Any]) -> tuple[State, dict[str, Any]]:
        self._tools.saver.check()
        with self._tools.stop.waiting():
            batch = next(source)
        with self._tools.profiler.step(step):
            return self._task.step(self._state, batch)

    def _finish(self, step: int, metrics: dict[str, Any]) -> dict[str, Any] | None:
        """What is due after a step; returns the evaluation if there was one.

        A step's metrics are read only after the next ones are under way, so that the device never
        waits for the host; but always before the step is saved or evaluated.
        """
        c, tools, last = self._config, self._tools, step == self._config.steps
        self._done = step
        settle(metrics)
        tools.profiler.end(step, metrics)
        evaluates = self._task.evaluate and (last or step % c.evaluate_every == 0)
        saves = last or step % c.checkpoint_every == 0
        copy = tools.saver.copy(self._state) if saves and not evaluates else None
        self._pending.append(_Pending(step, metrics, copy))
        # There is one copy at a time: its step is no longer pending when the next one is made.
        self._check(min(tools.pace.ahead, c.checkpoint_every - 1))
        values = self._evaluate(step) if evaluates else None
        if evaluates and saves:
            # Only now: what a kill in between loses is computed again on resume.
            self._save()
        if stops(tools.stop, step) and not last:
            raise Preempted
        return values

    def _last_values(self) -> dict[str, Any]:
        """Of a run that had taken its last step before: stopped while evaluating, it lacks them."""
        steps, evaluate = self._config.steps, self._task.evaluate
        if evaluate is None:
            self._check()
            return {}
        if self._tools.records.has("validation", steps):
            return evaluate(self._state, True, self._tools.stop.check)
        return self._evaluate(steps)

    def _save(self) -> None:
        """Saves the state unless it is the one saved last."""
        self._check()
        if self._done > self._saved:
            self._save_copy(self._done, self._tools.saver.copy(self._state))

    def _save_copy(self, step: int, copy: State) -> None:
        self._tools.saver.save(step, copy, self._task.position(step))
        self._saved = step

    def _check(self, keep: int = 0) -> None:
        """Reads the metrics of all pending steps but the last `keep`, and saves those to be saved.

        Logs them when due, judges those that are not finite.
        """
        task, tools = self._task, self._tools
        while len(self._pending) > keep:
            step, metrics, copy = self._pending.popleft()
            metrics = jax.device_get(metrics)
            finite = task.is_finite(metrics)
            if not finite or step % self._config.log_every == 0 or step == self._config.steps:
                self._log(step, metrics)
            if not finite:
                record, what = task.locate(step, metrics), task.describe.nonfinite(step, metrics)
                line = tools.nonfinite.found(step, record, what, tools.saver.newest)
                tools.display.note(line)
            if copy is not None:
                self._save_copy(step, copy)

    def _log(self, step: int, metrics: dict[str, Any]) -> None:
        task, tools = self._task, self._tools
        rate = tools.pace.interval(step) * task.units_per_step
        values = {**metrics}
        values |= task.measure(step - tools.nonfinite.skipped, rate)
        values[f"{task.unit}_per_second"] = rate
        self._record("train", step, values)
        tools.display.train(step, float(values["loss"]), rate)

    def _evaluate(self, step: int) -> dict[str, Any]:
        self._check()
        assert self._task.evaluate is not None
        # Training speed does not count the time spent here.
        with self._tools.pace.paused():
            last = step == self._config.steps
            values = self._task.evaluate(self._state, last, self._tools.stop.check)
            self._record("validation", step, values)
            self._tools.display.note(f"step {step}  {self._task.describe.evaluation(values)}")
        return values

    def _record(self, kind: str, step: int, values: dict[str, Any]) -> None:
        # Numbers of NumPy and JAX are none of Python's.
        scalars = (int, float, np.generic, np.ndarray, jax.Array)
        values = {
            k: np.asarray(v).item() if isinstance(v, scalars) and np.ndim(v) == 0 else v
            for k, v in values.items()
        }
        self._tools.records.write(kind, step, values)
        self._tools.board.draw(kind, step, values, self._task.draw)
