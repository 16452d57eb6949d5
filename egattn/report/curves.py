"""Figures with the training step on the horizontal axis."""

import math
from collections.abc import Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.colors import BoundaryNorm, ListedColormap
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patheffects import withStroke
from matplotlib.ticker import LogLocator, MaxNLocator, NullLocator

from egattn.report.runs import RunLog
from egattn.report.style import (
    WIDTH,
    Plot,
    canvas,
    layer_colours,
    markers,
    panels,
    run_style,
    spans_decades,
    text,
)


def loss(logs: Sequence[RunLog]) -> Plot | None:
    """Training and validation loss of all runs; None if none logged any."""
    figure = canvas(WIDTH, 4.2)
    ax = figure.subplots()
    rows = []
    for index, log in enumerate(logs):
        style = run_style(index)
        for split, columns in (("train", log.train), ("validation", log.validation)):
            if not columns:
                continue
            steps, losses = columns["step"], columns["loss"]
            if split == "train":
                ax.plot(steps, losses, alpha=0.55, linewidth=1, **style, **markers(steps.size))
            else:
                ax.plot(steps, losses, marker="D", markersize=5, markeredgecolor="white", **style)
            rows += [(log.label, split, int(s), x) for s, x in zip(steps, losses, strict=True)]
    if not rows:
        return None
    ax.set(xlabel="step", ylabel="cross entropy (nats per token)")
    _step_axis(ax)
    cut = _cut(ax, logs)
    splits = [
        Line2D([], [], color="#777777", linewidth=1),
        Line2D([], [], color="#777777", marker="D", markersize=5, markeredgecolor="white"),
    ]
    ax.legend(splits, ["training", "validation"], loc="upper right")
    handles = [Line2D([], [], linewidth=2.5, **run_style(i)) for i in range(len(logs))]
    labels = [text(log.label) for log in logs]
    figure.legend(handles, labels, loc="outside lower center", ncols=3)
    return Plot(
        "loss",
        "Loss",
        "Cross entropy of each run against the optimiser step: thin lines are training batches, "
        "diamonds the validation split; lower is better, and validation rising while training "
        f"falls is overfitting.{cut}",
        figure,
        ("run", "split", "step", "loss_nats_per_token"),
        rows,
    )


def _cut(ax: Axes, logs: Sequence[RunLog]) -> str:
    """Ends the axis where losses start if one rises far above, which would flatten all others."""
    columns = [[c["loss"] for c in (log.train, log.validation) if c] for log in logs]
    losses = [[x[np.isfinite(x)] for x in of_run] for of_run in columns]
    # A validation may come first when a run has already diverged.
    start = max((x[0][0] for x in losses if x and x[0].size), default=math.inf)
    values = np.concatenate([np.empty(0), *(x for of_run in losses for x in of_run)])
    lowest = values.min(initial=start)
    if lowest >= start or values.max() < 2 * start:
        return ""
    ax.set_ylim(lowest - 0.05 * (start - lowest), start + 0.05 * (start - lowest))
    return " Losses above those at the start are cut off."


def layer_entropy(logs: Sequence[RunLog]) -> Plot | None:
    """Layer-mean entropy against step, a panel per run; None if none logged any."""
    logs = [log for log in logs if log.train]
    if not logs:
        return None
    # Heads that are not finite leave a gap in their layer's line rather than pass for a mean.
    means = [log.train["head_entropy"].mean(2) for log in logs]
    figure, axes = _layer_panels(logs, means)
    for ax, log in zip(axes, logs, strict=True):
        _mark(ax, log.max_entropy, f"log T = {log.max_entropy:.2f}", "--")
        _mark(ax, log.uniform_entropy, f"uniform = {log.uniform_entropy:.2f}", ":")
        ax.set_ylim(0, max(r.max_entropy for r in logs) * 1.12 or 1.0)
        ax.set_ylabel("mean entropy (nats)")
    return Plot(
        "layer_entropy",
        "Attention entropy of each layer",
        "Mean entropy of a layer's heads on training batches, one line per layer; a line near 0 is "
        "entropy collapse, one at the dotted mean of uniform causal attention entropic overload "
        "(early positions see few tokens, so only the last row can reach the dashed log T).",
        figure,
        ("run", "step", "layer", "mean_entropy_nats"),
        _layer_rows(logs, means),
    )


def nonfinite(logs: Sequence[RunLog]) -> Plot | None:
    """Non-finite attention rows per layer against step; None if there were none."""
    logs = [log for log in logs if log.train and log.train["nonfinite"].any()]
    if not logs:
        return None
    counts = [log.train["nonfinite"] for log in logs]
    figure, axes = _layer_panels(logs, counts)
    for ax in axes:
        ax.set_yscale("symlog", linthresh=1)
        ax.set_ylim(bottom=0)
        ax.set_ylabel("non-finite rows")
    return Plot(
        "nonfinite",
        "Non-finite attention",
        "Number of attention rows per layer whose entropy was NaN or infinite, on training "
        "batches; the layer that rises first is the one to look at.",
        figure,
        ("run", "step", "layer", "nonfinite_rows"),
        _layer_rows(logs, counts),
    )


def temperature_positions(logs: Sequence[RunLog]) -> Plot | None:
    """Temperature against query position, a line per layer; None if no run learned any."""
    learned = [(log, log.temperature.mean(1)) for log in logs if log.temperature is not None]
    if not learned:
        return None
    figure, axes = panels([log.label for log, _ in learned], 3.0)
    for ax, (_, layers) in zip(axes, learned, strict=True):
        for colour, line in zip(layer_colours(len(layers)), layers, strict=True):
            ax.plot(np.arange(line.size), line, color=colour, **markers(line.size))
        # Far from 1, its line would flatten all others.
        if not spans_decades(np.append(layers, 1)):
            ax.axhline(1, color="#333333", linestyle="--", linewidth=1)
        ax.set(xlabel="query position", ylabel="temperature t")
        ax.xaxis.set_major_locator(MaxNLocator(integer=True))
        if spans_decades(layers):
            ax.set_yscale("log")
            ax.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
            ax.yaxis.set_major_formatter("{x:.3g}")
            ax.yaxis.set_minor_locator(NullLocator())
        _layer_bar(figure, ax, len(layers))
    return Plot(
        "temperature_positions",
        "Temperature against query position",
        "Learned softmax temperature of each query position, mean over heads, one line per layer; "
        "above 1 (dashed where near) attention is flattened, below it is sharpened.",
        figure,
        ("run", "layer", "position", "temperature"),
        [
            (log.label, layer, position, value)
            for log, layers in learned
            for (layer, position), value in np.ndenumerate(layers)
        ],
    )


def _layer_panels(
    logs: Sequence[RunLog], values: Sequence[np.ndarray]
) -> tuple[Figure, list[Axes]]:
    """A panel per run with a line per layer of its values [N, L] against step."""
    figure, axes = panels([log.label for log in logs], 3.0)
    for ax, log, layers in zip(axes, logs, values, strict=True):
        steps = log.train["step"]
        for colour, line in zip(layer_colours(layers.shape[1]), layers.T, strict=True):
            ax.plot(steps, line, color=colour, **markers(steps.size))
        ax.set_xlabel("step")
        _step_axis(ax)
        _layer_bar(figure, ax, layers.shape[1])
    return figure, axes


def _layer_bar(figure: Figure, ax: Axes, count: int) -> None:
    """A colour bar that names the panel's layers."""
    colours = ListedColormap(layer_colours(count))
    norm = BoundaryNorm(np.arange(count + 1) - 0.5, count)
    bar = figure.colorbar(ScalarMappable(norm, colours), ax=ax, label="layer", pad=0.02)
    bar.set_ticks(list(range(0, count, max(1, -(-count // 8)))))
    bar.minorticks_off()


def _mark(ax: Axes, level: float, label: str, dashes: str) -> None:
    """A named horizontal line."""
    ax.axhline(level, color="#333333", linestyle=dashes, linewidth=1)
    ax.annotate(
        label,
        (1, level),
        xycoords=("axes fraction", "data"),
        xytext=(-2, 3),
        textcoords="offset points",
        ha="right",
        fontsize=8,
        path_effects=[withStroke(linewidth=2.5, foreground="white")],
    )


def _step_axis(ax: Axes) -> None:
    ax.set_xlim(left=0)
    ax.xaxis.set_major_locator(MaxNLocator(6, integer=True, steps=[1, 2, 2.5, 5, 10]))
    ax.xaxis.set_major_formatter("{x:,.0f}")


def _layer_rows(logs: Sequence[RunLog], values: Sequence[np.ndarray]) -> list[tuple]:
    return [
        (log.label, int(log.train["step"][i]), layer, value)
        for log, layers in zip(logs, values, strict=True)
        for (i, layer), value in np.ndenumerate(layers)
    ]
