"""A trace of chosen steps: what host and device did, and when."""

import contextlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import jax


class Profiler:
    """Traces steps into a directory.

    Leaving the context ends a trace that is still open, so that a run that fails leaves one too.
    """

    def __init__(
        self, directory: Path, steps: tuple[int, int] | None, done: int, note: Callable[[str], Any]
    ):
        """Args: where to, first and last step if any, steps done so far, where to say things."""
        first, last = steps or (1, 0)
        self._directory, self._note = directory, note
        self._steps = range(max(first, done + 1), last + 1)
        self._open = False
        if steps and not self._steps:
            note(f"nothing to profile: the run resumes after step {done}")

    def __enter__(self):
        """Returns itself."""
        return self

    def __exit__(self, *_):
        """Ends an open trace."""
        if self._open:
            self._open = False
            with self._noted():
                jax.profiler.stop_trace()
                self._note(
                    f"profile: {self._directory} (*.trace.json.gz opens in ui.perfetto.dev, the "
                    f"directory in XProf)"
                )

    def step(self, step: int) -> contextlib.AbstractContextManager[Any]:
        """Context of a step's work; the first step to trace begins the trace."""
        if step not in self._steps:
            return contextlib.nullcontext()
        if not self._open and not self._begun():
            self._steps = range(0)
        return jax.profiler.StepTraceAnnotation("train", step_num=step)

    def end(self, step: int, results: Any) -> None:
        """Ends the trace after its last step, once the device has computed `results`."""
        if self._open and step == self._steps[-1]:
            jax.block_until_ready(results)
            self.__exit__()

    def _begun(self) -> bool:
        with self._noted():
            # First, since a trace that cannot be written stays open in this process.
            self._directory.mkdir(parents=True, exist_ok=True)
            jax.profiler.start_trace(self._directory)
            self._open = True
        return self._open

    @contextlib.contextmanager
    def _noted(self) -> Iterator[None]:
        """A trace that fails, say since another one is open, is no training that fails."""
        try:
            yield
        except (OSError, RuntimeError) as error:
            self._note(f"no profile: {' '.join(str(error).split())}")
