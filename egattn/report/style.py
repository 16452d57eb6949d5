"""How every figure looks: sizes, palette, canvases, and the plot with its data."""

import csv
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from egattn.report.animation import Animation

# Twice the 96 pixels of a CSS inch, so that a page at its natural size is sharp on dense screens.
DPI = 192
# Inches: the page's column, and a figure that has only one small panel.
WIDTH, SINGLE_WIDTH = 10.0, 6.0
STYLE: dict[str, Any] = {
    "font.size": 9,
    "axes.titlesize": 10,
    "axes.titleweight": "bold",
    "axes.titlelocation": "left",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.edgecolor": "#555555",
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": "#e4e4e4",
    "grid.linewidth": 0.7,
    "xtick.color": "#555555",
    "ytick.color": "#555555",
    "xtick.labelcolor": "#222222",
    "ytick.labelcolor": "#222222",
    "legend.frameon": False,
    "lines.linewidth": 1.4,
    "lines.solid_joinstyle": "round",
    "figure.constrained_layout.w_pad": 0.08,
    "figure.constrained_layout.h_pad": 0.08,
}
# Okabe and Ito's palette, which people with any common colour blindness can tell apart.
_COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#333333")
_DASHES = ("-", "--", ":", "-.")
_LONGEST = 34


class Plot(NamedTuple):
    """A figure with what the page says about it and the numbers it shows."""

    name: str
    """File name without suffix."""
    title: str
    """Heading."""
    caption: str
    """What it shows and how to read it."""
    figure: Figure
    """The drawing."""
    header: Sequence[str]
    """Names of the data's columns."""
    rows: Sequence[Sequence[Any]]
    """The data."""
    alt: str = ""
    """What is seen, for those who do not see it; empty for the title."""
    animation: Animation | None = None
    """How the drawing moves."""

    @property
    def image(self) -> str:
        """File name of the picture."""
        return f"{self.name}.{'gif' if self.animation else 'png'}"

    def write(self, directory: Path) -> None:
        """Writes the picture, and `name.csv`."""
        if self.animation is None:
            self.figure.savefig(directory / self.image)
        else:
            self.animation.write(self.figure, directory / self.image)
        with (directory / f"{self.name}.csv").open("w", encoding="utf-8", newline="") as file:
            csv.writer(file).writerows([self.header, *self.rows])


def run_style(index: int) -> dict[str, Any]:
    """Colour and line style of the run with this index: dashes tell a colour's second use."""
    dash = _DASHES[index // len(_COLOURS) % len(_DASHES)]
    return {"color": _COLOURS[index % len(_COLOURS)], "linestyle": dash}


def layer_colours(count: int) -> list[tuple[float, ...]]:
    """Sequential colours of layers, dark first; the palest yellow is left out on white."""
    return [colormaps["viridis"](0.9 * i / max(count - 1, 1)) for i in range(count)]


def text(label: str) -> str:
    """A run's label as matplotlib draws it: one line, cut in the middle, without markup."""
    label = " ".join(label.split())
    if len(label) > _LONGEST:
        label = label[: _LONGEST // 2] + "…" + label[-(_LONGEST // 2) :]
    # Dollar signs would start mathematics.
    return label.replace("$", r"\$")


def canvas(width: float, height: float) -> Figure:
    """An empty figure; sizes in inches."""
    return Figure(figsize=(width, height), dpi=DPI, layout="constrained")


def panels(labels: Sequence[str], height: float) -> tuple[Figure, list[Axes]]:
    """A figure with one titled panel per run, two in a row; height of a row in inches."""
    columns = min(len(labels), 2)
    rows = math.ceil(len(labels) / 2)
    figure = canvas(WIDTH if columns == 2 else SINGLE_WIDTH, rows * height)
    axes = list(figure.subplots(rows, columns, squeeze=False).ravel())
    for spare in axes[len(labels) :]:
        spare.remove()
    axes = axes[: len(labels)]
    for ax, label in zip(axes, labels, strict=True):
        ax.set_title(text(label))
    return figure, axes


def markers(points: int) -> dict[str, Any]:
    """Line properties that keep few points visible, a single one above all."""
    return {"marker": "o", "markersize": 3} if points <= 25 else {}


def spans_decades(values: np.ndarray) -> bool:
    """Whether positive values cover so wide a range that only a logarithmic scale shows it."""
    finite = values[np.isfinite(values)]
    return bool(finite.size and 0 < 8 * finite.min() < finite.max())
