"""Figures of heads and layers at the last evaluation."""

import math
from collections.abc import Sequence

import numpy as np
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.colors import LogNorm, Normalize
from matplotlib.figure import Figure
from matplotlib.patches import Patch
from matplotlib.ticker import LogLocator, MultipleLocator

from egattn.entropy import range_counts
from egattn.report.runs import Run
from egattn.report.style import WIDTH, Plot, canvas, panels, spans_decades, text

# Above this many layers or heads the numbers in a heat map's cells would touch.
_ANNOTATED = 12
# Name, colour and text colour of a bar's segments; the last is drawn only where it has heads.
_SEGMENTS = (
    ("[0, M/4)", "#00204d", "white"),
    ("[M/4, M/2)", "#31678f", "white"),
    ("[M/2, 3M/4)", "#e0b870", "black"),
    ("[3M/4, M]", "#b5541c", "white"),
    ("not finite", "#bbbbbb", "black"),
)


def entropy_map(runs: Sequence[Run]) -> Plot | None:
    """Heat map of validation head entropy per run; None if no run was evaluated."""
    maps = [(run.label, run.final_entropy) for run in runs if run.final_entropy is not None]
    if not maps:
        return None
    top = max(run.max_entropy for run in runs if run.validation) or 1.0
    uniform = " or ".join({f"{run.uniform_entropy:.2f}": 0 for run in runs if run.validation})
    figure = _heat_maps(maps, Normalize(0, top), "head entropy (nats)", "{:.2f}")
    return Plot(
        "head_entropy",
        "Attention entropy of each head",
        "Entropy of every head on the validation split at the last evaluation, on one scale from 0 "
        f"to log T = {top:.2f} nats for all runs; dark heads attend to few tokens, heads at "
        f"{uniform} nats to all that they see (uniform causal attention), grey ones are not "
        "finite.",
        figure,
        ("run", "layer", "head", "entropy_nats"),
        _head_rows(maps),
    )


def ranges(runs: Sequence[Run]) -> Plot | None:
    """Heads per entropy range as stacked bars; None if no run was evaluated."""
    runs = [run for run in runs if run.final_entropy is not None]
    if not runs:
        return None
    figure = canvas(WIDTH, 0.95 + 0.5 * len(runs))
    ax = figure.subplots()
    rows = []
    for index, run in enumerate(runs):
        heads = run.validation["head_entropy"][-1]
        finite = heads[np.isfinite(heads)]
        counts = [*range_counts(heads).tolist(), heads.size - finite.size]
        _stacked_bar(ax, index, counts)
        largest = f"M = {finite.max():.2f} nats" if finite.size else "no finite head"
        ax.text(1.01, index, largest, va="center", size=8)
        rows += [
            (run.label, name, count, count / heads.size, finite.max(initial=0))
            for (name, _, _), count in zip(_SEGMENTS, counts, strict=True)
        ]
    ax.set(xlim=(0, 1), ylim=(len(runs) - 0.5, -0.5), xlabel="share of heads")
    ax.set_yticks(range(len(runs)), [text(run.label) for run in runs])
    ax.xaxis.set_major_formatter(lambda x, _: f"{x:.0%}")
    ax.grid(False)
    shown = {name for _, name, count, *_ in rows if count} | {name for name, *_ in _SEGMENTS[:4]}
    handles = [Patch(color=colour, label=name) for name, colour, _ in _SEGMENTS if name in shown]
    figure.legend(handles=handles, loc="outside upper center", ncols=5)
    return Plot(
        "entropy_ranges",
        "Heads per entropy range",
        "Share (and number) of heads in four equal ranges from 0 to M, the largest head entropy of "
        "the run itself; much of the bar in the last range is entropic overload, much in the "
        "first collapse.",
        figure,
        ("run", "range", "heads", "share", "largest_entropy_nats"),
        rows,
    )


def _stacked_bar(ax: Axes, index: int, counts: Sequence[int]) -> None:
    """One run's bar; segments too narrow for their numbers have none."""
    left, heads = 0.0, sum(counts)
    for count, (_, colour, ink) in zip(counts, _SEGMENTS, strict=True):
        share = count / heads
        ax.barh(index, share, left=left, height=0.72, color=colour, edgecolor="white")
        if share >= 0.035:
            label = f"{share:.0%}\n({count})"
            ax.text(left + share / 2, index, label, color=ink, ha="center", va="center", size=8)
        left += share


def temperature_map(runs: Sequence[Run]) -> Plot | None:
    """Heat map of each head's temperature per run; None if no run learned any."""
    maps = [(r.label, r.learned["temperature"]) for r in runs if "temperature" in r.learned]
    values = np.concatenate([heads.ravel() for _, heads in maps]) if maps else np.array([])
    values = values[np.isfinite(values)]
    if not values.size:
        return None
    # Equal temperatures still need an interval to be coloured on.
    norm = LogNorm if spans_decades(values) else Normalize
    return Plot(
        "temperature",
        "Learned temperatures",
        "Softmax temperature t of each head at the last evaluation, geometric mean over query "
        "positions; t < 1 sharpens the head's attention, t > 1 "
        "flattens it.",
        _heat_maps(maps, norm(values.min() / 1.02, values.max() * 1.02), "temperature t", "{:.2g}"),
        ("run", "layer", "head", "temperature"),
        _head_rows(maps),
    )


def _heat_maps(
    maps: Sequence[tuple[str, np.ndarray]], norm: Normalize, label: str, cell: str
) -> Figure:
    """A layers x heads map per run on one colour scale; numbers in the cells of small ones."""
    deepest = max(len(heads) for _, heads in maps)
    widest = max(max(heads.shape) for _, heads in maps)
    row = 0.3 if widest <= _ANNOTATED else 0.17
    figure, axes = panels([name for name, _ in maps], min(max(1.0 + row * deepest, 2.4), 8.0))
    colours = colormaps["viridis"].with_extremes(bad="#bbbbbb")
    for ax, (_, heads) in zip(axes, maps, strict=True):
        ax.imshow(heads, cmap=colours, norm=norm, aspect="auto", interpolation="nearest")
        ax.set(xlabel="head", ylabel="layer")
        for axis, count in ((ax.xaxis, heads.shape[1]), (ax.yaxis, len(heads))):
            axis.set_major_locator(MultipleLocator(1 if count <= _ANNOTATED else 2))
        ax.spines[:].set_visible(False)
        ax.tick_params(length=0)
        ax.grid(False)
        if max(heads.shape) <= _ANNOTATED:
            _annotate(ax, heads, norm, cell)
    ticks = LogLocator(subs=(1, 2, 5)) if isinstance(norm, LogNorm) else None
    bar = figure.colorbar(
        ScalarMappable(norm, colours),
        ax=axes,
        label=label,
        pad=0.02,
        # Height over width: a bar beside several rows stays as narrow as beside one.
        aspect=20 * math.ceil(len(maps) / 2),
        ticks=ticks,
        format="{x:.3g}",
    )
    bar.minorticks_off()
    return figure


def _annotate(ax: Axes, heads: np.ndarray, norm: Normalize, cell: str) -> None:
    size = 8 if max(heads.shape) <= 8 else 6.5
    for (layer, head), value in np.ndenumerate(heads):
        finite = np.isfinite(value)
        # White on the dark part of the scale, black on the bright part and on grey.
        colour = "white" if finite and norm(value) < 0.6 else "black"
        label = cell.format(value) if finite else "NaN"
        ax.text(head, layer, label, color=colour, ha="center", va="center", size=size)


def _head_rows(maps: Sequence[tuple[str, np.ndarray]]) -> list[tuple]:
    return [
        (label, layer, head, value)
        for label, heads in maps
        for (layer, head), value in np.ndenumerate(heads)
    ]
