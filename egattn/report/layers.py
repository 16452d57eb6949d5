"""Figures of learned parameters against layer at the last evaluation."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from matplotlib.axes import Axes
from matplotlib.ticker import MaxNLocator

from egattn.report.runs import RunLog
from egattn.report.style import SINGLE_WIDTH, WIDTH, Plot, canvas, panels, run_style, text


def thresholds(logs: Sequence[RunLog]) -> Plot | None:
    """Learned thresholds per head with layer mean and deviation; None if no run has any."""
    learned = [(log.label, log.learned["threshold"]) for log in logs if "threshold" in log.learned]
    if not learned:
        return None
    figure, axes = panels([label for label, _ in learned], 3.0)
    for ax, (_, heads) in zip(axes, learned, strict=True):
        layers = np.arange(len(heads))
        # Heads side by side within a layer's slot, so that equal thresholds do not hide each other.
        spread = np.linspace(-0.3, 0.3, heads.shape[1]) if heads.shape[1] > 1 else np.zeros(1)
        x = layers[:, None] + spread
        ax.plot(x.ravel(), heads.ravel(), "o", color="#56B4E9", markersize=3, label="head")
        ax.errorbar(
            layers,
            heads.mean(1),
            heads.std(1),
            color="#333333",
            marker="s",
            markersize=4,
            capsize=3,
            linewidth=1.2,
            label="layer mean ± standard deviation",
        )
        ax.set(xlabel="layer", ylabel="threshold (fraction of log T)")
        _layer_axis(ax, len(heads))
        ax.margins(y=0.1)
    low = min(ax.get_ylim()[0] for ax in axes)
    high = max(ax.get_ylim()[1] for ax in axes)
    # A span below a tenth would make noise look like structure.
    half = max(high - low, 0.1) / 2
    for ax in axes:
        ax.set_ylim((low + high) / 2 - half, (low + high) / 2 + half)
    figure.legend(*axes[0].get_legend_handles_labels(), loc="outside lower center", ncols=2)
    return Plot(
        "thresholds",
        "Learned entropy thresholds",
        "Fraction of the maximum entropy around which the penalty leaves each head free: dots are "
        "heads, squares layer means, bars the standard deviation over the layer's heads (the "
        "variance is in the data file).",
        figure,
        ("run", "layer", "head", "threshold", "layer_mean", "layer_variance"),
        [
            (label, i, j, value, heads[i].mean(), heads[i].var())
            for label, heads in learned
            for (i, j), value in np.ndenumerate(heads)
        ],
    )


class _Scalar(NamedTuple):
    """A learned scalar per layer: its name, its axis label and the value that changes nothing."""

    name: str
    label: str
    neutral: float


_SCALARS = (
    _Scalar("alpha", r"$\alpha$ (divides the feed-forward)", 1.0),
    _Scalar("beta", r"$\beta$ (multiplies the residual)", 1.0),
    _Scalar("slope", "leaky-ReLU slope", 0.0),
)


def scalars(logs: Sequence[RunLog]) -> Plot | None:
    """Learned alpha, beta and slope against layer, all runs; None if no run has any."""
    shown = [s for s in _SCALARS if any(s.name in log.learned for log in logs)]
    if not shown:
        return None
    figure = canvas(WIDTH if len(shown) > 1 else SINGLE_WIDTH, 3.2)
    rows, handles = [], {}
    for ax, scalar in zip(figure.subplots(1, len(shown), squeeze=False)[0], shown, strict=True):
        ax.axhline(scalar.neutral, color="#333333", linestyle=(0, (4, 3)), linewidth=1)
        depth = 1
        for index, log in enumerate(logs):
            if scalar.name not in log.learned:
                continue
            mean, deviation = _moments(log, scalar.name)
            depth = max(depth, mean.size)
            handles[text(log.label)] = ax.errorbar(
                np.arange(mean.size),
                mean,
                deviation if deviation.any() else None,
                marker="o",
                markersize=4,
                capsize=3,
                **run_style(index),
            )
            rows += [
                (log.label, scalar.name, layer, m, s)
                for layer, (m, s) in enumerate(zip(mean, deviation, strict=True))
            ]
        ax.set(xlabel="layer", title=scalar.label)
        _layer_axis(ax, depth)
    figure.legend(list(handles.values()), list(handles), loc="outside lower center", ncols=3)
    return Plot(
        "scalars",
        "Learned scalars of each layer",
        "Learned alpha and beta of the scaled feed-forward, beta x + FFN(x) / alpha, and the "
        "leaky-ReLU slope, at the last evaluation; dashed lines mark the scalars that change "
        "nothing (1) and the slope of ReLU (0), bars the standard deviation over features.",
        figure,
        ("run", "parameter", "layer", "value", "standard_deviation"),
        rows,
    )


def _moments(log: RunLog, name: str) -> tuple[np.ndarray, np.ndarray]:
    """Value and standard deviation over features of each layer [L]."""
    values = log.learned[name]
    if values.ndim == 0:
        # One value for the whole model is every layer's.
        values = np.full(log.validation["head_entropy"].shape[1], values)
    features = values.reshape(len(values), -1)
    return features.mean(1), features.std(1)


def _layer_axis(ax: Axes, count: int) -> None:
    ax.set_xlim(-0.6, count - 0.4)
    ax.xaxis.set_major_locator(MaxNLocator(12, integer=True, min_n_ticks=1))
