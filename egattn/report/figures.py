"""All figures of a report, in reading order."""

import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

import matplotlib.style

from egattn.report import curves, heads, layers
from egattn.report.runs import RunLog
from egattn.report.style import STYLE, Plot

_FIGURES: tuple[Callable[[Sequence[RunLog]], Plot | None], ...] = (
    curves.loss,
    heads.entropy_map,
    heads.ranges,
    curves.layer_entropy,
    layers.thresholds,
    heads.temperature_map,
    curves.temperature_positions,
    layers.scalars,
    curves.nonfinite,
)


@contextmanager
def drawing() -> Iterator[None]:
    """Within it, figures are drawn and saved in the report's style, whatever the user's own."""
    with matplotlib.style.context(["default", STYLE]), warnings.catch_warnings():
        # Letters that the font lacks are drawn as boxes; the page has every name in full.
        warnings.filterwarnings("ignore", "Glyph .* missing from font", UserWarning)
        yield


def draw(logs: Sequence[RunLog]) -> list[Plot]:
    """Draws every figure that the runs have data for; call within `drawing`."""
    return [plot for figure in _FIGURES if (plot := figure(logs)) is not None]
