"""A trace of chosen steps: what host and device did, and when."""

import contextlib
from typing import Any

import jax

from egattn.train.config import TrainConfig
from egattn.train.console import Display


class Profiler:
    """Traces the steps that `config.profile` names into RUN/profile; without it does nothing.

    Leaving the context ends a trace that is still open, so that a run that fails leaves one too.
    """

    def __init__(self, config: TrainConfig, display: Display, done: int):
        first, last = config.profile or (1, 0)
        self._directory, self._display = config.run / "profile", display
        self._steps = range(max(first, done + 1), last + 1)
        self._open = False
        if config.profile and not self._steps:
            display.note(f"nothing to profile: the run resumes after step {done}")

    def __enter__(self):
        """Returns itself."""
        return self

    def __exit__(self, *_):
        """Ends an open trace."""
        if self._open:
            self._open = False
            jax.profiler.stop_trace()
            self._display.note(
                f"profile: {self._directory} (*.trace.json.gz opens in ui.perfetto.dev, the "
                f"directory in XProf)"
            )

    def step(self, step: int) -> contextlib.AbstractContextManager[Any]:
        """Context of a step's work; the first step to trace begins the trace."""
        if step not in self._steps:
            return contextlib.nullcontext()
        if not self._open:
            jax.profiler.start_trace(self._directory)
            self._open = True
        return jax.profiler.StepTraceAnnotation("train", step_num=step)

    def end(self, step: int, results: Any) -> None:
        """Ends the trace after its last step, once the device has computed `results`."""
        if self._open and step == self._steps[-1]:
            jax.block_until_ready(results)
            self.__exit__()
