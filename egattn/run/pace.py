"""How fast a run goes, and how far its host may run ahead of the devices."""

import contextlib
import time
from collections.abc import Callable, Iterator

# About so many seconds, and steps at most. It hides what delays the host, such as a busy disk, and
# it delays stopping on request.
_AHEAD, _MOST_AHEAD = 0.5, 16
# Weight of what was measured until a log line against what is measured until the next one.
_KEPT = 0.9


class Pace:
    """Measures the intervals between log lines."""

    def __init__(self, first: int, clock: Callable[[], float] = time.perf_counter):
        """Args: steps done before, and a clock in seconds."""
        self.ahead = 1
        """Steps that the host may run ahead of the devices."""
        self._clock, self._logged, self._since = clock, first, clock()
        # Steps and seconds of the last intervals, older ones fading.
        self._recent: tuple[float, float] | None = None

    def interval(self, step: int) -> float:
        """Ends an interval after a step; returns its steps per second."""
        now = self._clock()
        steps, seconds = step - self._logged, now - self._since
        self._since, self._logged = now, step
        self._look_ahead(steps, seconds)
        return steps / seconds

    def _look_ahead(self, steps: int, seconds: float) -> None:
        """Goes by the mean speed of about the last ten intervals.

        Where launching waits for the device, running further ahead makes this interval seem slow
        and the next one fast. Going by the last one alone, or by less than a whole step, it would
        swing for ever.
        """
        if self._recent is None:
            # The first one holds compilation.
            self._recent = (0, 0)
            return
        self._recent = (_KEPT * self._recent[0] + steps, _KEPT * self._recent[1] + seconds)
        wanted = min(max(_AHEAD * self._recent[0] / self._recent[1], 1), _MOST_AHEAD)
        if abs(wanted - self.ahead) >= 1:
            self.ahead = round(wanted)

    @contextlib.contextmanager
    def paused(self) -> Iterator[None]:
        """Work that does not count, such as an evaluation."""
        began = self._clock()
        yield
        self._since += self._clock() - began
