"""Figures of docs/results.md and the README that need the files of results alone.

python -m experiments.paper figures
"""

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from egattn.entropy import uniform_entropy
from egattn.report.figures import drawing
from egattn.report.style import WIDTH, canvas, run_style
from experiments.paper.front import BUDGETS, Lines, Point, front, points
from experiments.paper.result import results
from experiments.paper.run import Config as RunConfig
from experiments.paper.studies.verdicts import NETS, training
from experiments.paper.study import MILLION, TOKENS_PER_STEP

_BUDGET = 100 * MILLION
_SEEDS = (0, 1, 2)
# Where differences begin to be read: before it the curves fall by a factor of a thousand.
_FIRST_TOKENS = 10 * MILLION
_REFERENCE = "sm_scfuffn"
_EREG = "ereg_sm_t_scfuffn"
_NAMES = {
    "sm_ln_g": "SM+LN+G",
    "sm_ln_r": "SM+LN+R",
    "sm_ln": "SM+LN",
    "sm_g": "SM+G",
    "sm_r": "SM+R",
    "sm": "SM",
    "sm_snorm": "spectral norm",
    "sm_scfuffn": "SM+ScFuFFN",
    "sm_scfuffn-penalty": "SM+ScFuFFN, penalty",
    "sm_scfuffn_4": "without 4 feed-forwards",
    "sm_scfuffn_6": "without 6",
    "sm_t_scfuffn": "SM(t)+ScFuFFN",
    _EREG: "EReg, hard",
    f"{_EREG}-excess": "EReg, excess",
    f"{_EREG}-row": "EReg, hard, row",
    f"{_EREG}-excess-row": "EReg, excess, row",
}


@dataclasses.dataclass(frozen=True)
class Config:
    """What to draw, and where."""

    results: Path = RunConfig.results
    """File of results."""
    out: Path = Path("docs/figures")
    """Directory of the figures."""


def main(config: Config) -> None:
    """Draws all of them."""
    lines = results(config.results)
    with drawing():
        for name, figure in (
            ("front", traffic(lines)),
            ("verdicts_perplexity", curves(lines)),
            ("verdicts_entropy", entropy_maps(lines)),
        ):
            figure.savefig(config.out / f"{name}.png", dpi=110)


def traffic(lines: Lines) -> Figure:
    """Perplexity against estimated traffic, a panel per budget, with the front."""
    figure = canvas(WIDTH, 4.2)
    for ax, tokens in zip(figure.subplots(1, len(BUDGETS)), BUDGETS, strict=True):
        found = points(lines, tokens)
        best = front(found)
        others = [point for point in found if point not in best]
        ax.scatter([p.gigabytes for p in others], [p.perplexity for p in others], s=14, c="#9a9a9a")
        xs, ys = [p.gigabytes for p in best], [p.perplexity for p in best]
        ax.step([*xs, 25], [*ys, ys[-1]], where="post", color=run_style(0)["color"])
        ax.scatter(xs, ys, s=24, color=run_style(0)["color"], zorder=3)
        for point in found:
            if point in best or point.net in ("sm_ln_r", "sm_r"):
                _label(ax, point)
        ax.set(xscale="log", yscale="log", xlim=(4, 25), title=f"{tokens // MILLION} M tokens")
        ax.set(xlabel="GB for 128 tokens (estimate)", ylabel="validation perplexity")
        ax.set_ylim(0.93 * min(ys), 2.2 * min(ys))
        ax.xaxis.set_major_formatter("{x:g}")
        ax.set_xticks([4, 5, 6, 8, 10, 15, 20])
        ax.minorticks_off()
        ticks = np.unique(np.round(np.geomspace(min(ys), 2 * min(ys), 6)))
        ax.set_yticks(ticks, [f"{tick:g}" for tick in ticks])
    return figure


def _label(ax: Axes, point: Point) -> None:
    # Nets with the penalty stand below those without, whose names have the place above.
    below = point.net.startswith(_EREG) or point.net.endswith("penalty")
    ax.annotate(
        _NAMES.get(point.net, point.net),
        (point.gigabytes, point.perplexity),
        xytext=(6, -10) if below else (5, 4),
        textcoords="offset points",
        size=7.5,
    )


def curves(lines: Lines) -> Figure:
    """Training perplexity against tokens, and against a net of the same seed; bands over seeds."""
    figure = canvas(WIDTH, 4.2)
    left, right = figure.subplots(1, 2)
    base = {seed: _curve(lines, _REFERENCE, seed) for seed in _SEEDS}
    for index, net in enumerate(NETS):
        found = {seed: curve for seed in _SEEDS if (curve := _curve(lines, net, seed)) is not None}
        if not found:
            continue
        style = run_style(index)
        tokens = next(iter(found.values()))[0]
        _band(left, tokens, [np.exp(loss) for _, loss in found.values()], style, _NAMES[net])
        ratios = [
            100 * np.expm1(loss - other[1])
            for seed, (_, loss) in found.items()
            if (other := base[seed]) is not None
        ]
        if net.startswith(("sm_t", _EREG)) and ratios:
            _band(right, tokens, ratios, style, _NAMES[net])
    left.set(yscale="log", ylabel="training perplexity", xlabel="million tokens")
    left.yaxis.set_major_formatter("{x:g}")
    right.axhline(0, color="#555555", linewidth=0.8)
    right.set(ylabel="% of SM+ScFuFFN, same seed", xlabel="million tokens", ylim=(-22, 5))
    left.legend()
    right.legend(loc="lower right")
    return figure


def _band(
    ax: Axes, tokens: np.ndarray, values: list[np.ndarray], style: Mapping[str, Any], name: str
) -> None:
    """Mean and range over seeds."""
    shown = tokens * MILLION >= _FIRST_TOKENS
    x, stacked = tokens[shown], np.stack(values)[:, shown]
    ax.plot(x, stacked.mean(0), label=f"{name} ({len(values)})", **style)
    ax.fill_between(x, stacked.min(0), stacked.max(0), color=style["color"], alpha=0.2, linewidth=0)


def _curve(lines: Lines, net: str, seed: int) -> tuple[np.ndarray, np.ndarray] | None:
    """Million tokens and training losses of a run."""
    line = lines.get(tuple(training(net, seed=seed, tokens=_BUDGET).words()))
    if line is None:
        return None
    curve = line["curve"]
    return np.array(curve["step"]) * TOKENS_PER_STEP / MILLION, np.array(curve["loss"])


def entropy_maps(lines: Lines) -> Figure:
    """Entropy of each head of the nets, first seed there is, heads of a layer sorted."""
    found = {net: heads for net in NETS if (heads := _heads(lines, net)) is not None}
    figure = canvas(WIDTH, 4.6)
    axes = figure.subplots(2, -(-len(found) // 2), squeeze=False)
    for ax, (net, heads) in zip(axes.ravel(), found.items(), strict=False):
        image = ax.imshow(np.sort(heads, axis=1), vmin=0, vmax=uniform_entropy(128), cmap="cividis")
        ax.set_title(_NAMES[net], size=8)
        ax.set(xticks=[], yticks=range(0, len(heads), 3))
        ax.grid(False)
    bar = figure.colorbar(image, ax=axes, shrink=0.8)
    bar.set_label("nats; brightest: uniform attention")
    figure.supylabel("layer", size=9)
    figure.supxlabel("heads, sorted", size=9)
    return figure


def _heads(lines: Lines, net: str) -> np.ndarray | None:
    for seed in _SEEDS:
        line = lines.get(tuple(training(net, seed=seed, tokens=_BUDGET).words()), {})
        if "head_entropy" in line:
            return np.array(line["head_entropy"])
    return None
