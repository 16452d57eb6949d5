"""The report's figures."""

import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import LogNorm

from egattn.report.animation import Animation
from egattn.report.style import WIDTH, Plot, canvas, layer_colours, run_style
from experiments.zeta import frequency, precision, rare, zeros
from experiments.zeta.box import Box
from experiments.zeta.euler_maclaurin import EulerMaclaurin
from experiments.zeta.evaluator import at
from experiments.zeta.functions import DAVENPORT_HEILBRONN, ZETA, DirichletSeries
from experiments.zeta.search import ELITES, ROUNDS, SAMPLES, cross_entropy, even_windows, windows

_SEARCHED = Box(0.05, 0.95, 10, 50)
_CONTRACTED = Box(0.05, 0.95, 10, 102)
_ONE = Box(0.05, 0.95, 13.5, 15.0)
_LONG = 40
_CONTRACTION = 0.382
_LEVELS = (0.03, 10.0)


def landscape(seed: int) -> Plot:
    """|zeta| with the samples of each round."""
    parts = windows(ZETA, _SEARCHED)
    best = cross_entropy(
        *(EulerMaclaurin(ZETA, _SEARCHED.t_high), parts, seed),
        rounds=ROUNDS,
        samples=SAMPLES,
        elites=ELITES,
        keep_samples=True,
    )
    assert best.samples is not None
    samples = np.asarray(best.samples)
    figure = canvas(WIDTH, 2.9)
    ax = figure.subplots()
    _surface(ax, ZETA, _SEARCHED)
    rows = []
    for number, colour in enumerate(layer_colours(ROUNDS)):
        sigma = samples[:, number, :, 0].ravel() + 0.5
        t = (samples[:, number, :, 1] + parts.anchor[:, None]).ravel()
        ax.plot(t, sigma, ".", ms=2.5, color=colour, label=f"round {number + 1}")
        rows += [(number + 1, *point) for point in zip(sigma, t, strict=True)]
    _legend_above(ax, ROUNDS, markerscale=3)
    return Plot(
        "landscape",
        "Where the search looks",
        f"|zeta| in {_SEARCHED}, dark where it is small, and the samples of each round of the "
        "search, one window after the other. Muller's method goes on from the three best points "
        "of the last round; it does as well from the best three of the first.",
        figure,
        ("round", "sigma", "t"),
        rows,
    )


def contraction(seed: int) -> Plot:
    """The level of the elite against rounds."""
    parts = even_windows(_CONTRACTED, 1.0)
    best = cross_entropy(EulerMaclaurin(ZETA, _CONTRACTED.t_high), parts, seed, rounds=_LONG)
    levels = np.asarray(best.levels)
    found = levels[:, -1] < 1e-8
    figure = canvas(WIDTH, 3.4)
    ax = figure.subplots()
    rounds = np.arange(1, _LONG + 1)
    for index, (group, label) in enumerate(((found, "on a zero"), (~found, "elsewhere"))):
        ax.plot(rounds, levels[group].T, alpha=0.3, lw=0.8, color=run_style(index)["color"])
        ax.plot([], [], label=f"windows that end {label}", color=run_style(index)["color"])
    slope = levels[found, 0].mean() * _CONTRACTION ** (rounds - 1)
    ax.plot(rounds, slope, color="#333333", ls="--", label=f"{_CONTRACTION} per round")
    ax.set(yscale="log", ylim=(1e-15, 10), xlabel="round", ylabel="worst |zeta| of the elite")
    ax.legend()
    return Plot(
        "contraction",
        "Samples contract on zeros, and stop elsewhere",
        "The plain search, 200 samples per round, windows of height 1: the worst value of the "
        "best tenth. About a simple zero |zeta| is a cone, and a round shrinks the cloud by 0.382. "
        "Windows without a zero end on their boundary; where a search ends is a zero only "
        "if |zeta| is 0 to rounding.",
        figure,
        ("round", *(f"window at {t:.2f}" for t in parts.anchor)),
        [(n, *row) for n, row in zip(rounds.tolist(), levels.T, strict=True)],
    )


def control(result: zeros.Result) -> Plot:
    """The function with zeros off the line."""
    box = Box(*result.box)
    figure = canvas(WIDTH, 2.9)
    ax = figure.subplots()
    _surface(ax, DAVENPORT_HEILBRONN, box)
    for off, style in ((False, "o"), (True, "D")):
        points = [z for z, o in zip(result.zeros, result.off_line, strict=True) if o == off]
        label = "proved off the line" if off else "on the line"
        s, t = np.array(points).reshape(-1, 2).T
        colour = "#D55E00" if off else "#56B4E9"
        ax.plot(t, s, style, ms=7, mfc="none", mew=1.8, color=colour, label=label)
    _legend_above(ax, 2)
    return Plot(
        "control",
        "The control: zeros off the line are found",
        "The Davenport-Heilbronn function has a functional equation like that of zeta and zeros "
        "off the line. The same search finds them, and balls that exclude sigma = 1/2 prove them: "
        "the search does not prefer the line.",
        figure,
        ("sigma", "t", "off the line"),
        [(*z, o) for z, o in zip(result.zeros, result.off_line, strict=True)],
    )


def rare_levels(results: list[rare.Result]) -> Plot:
    """Thresholds on the way, and the estimates."""
    figure = canvas(WIDTH, 3.4)
    ax, beside = figure.subplots(1, 2)
    rows = []
    for index, result in enumerate(results):
        label = f"eps = {result.eps:g}"
        ax.plot(
            range(1, len(result.levels) + 1),
            result.levels,
            marker="o",
            ms=3,
            label=label,
            **run_style(index),
        )
        beside.errorbar(
            *([index], [result.ratio], [4 * result.standard_error / result.exact]),
            fmt="o",
            capsize=4,
            color=run_style(index)["color"],
        )
        rows += [(result.eps, n, level) for n, level in enumerate(result.levels, 1)]
    ax.set(yscale="log", xlabel="level", ylabel="threshold of |zeta|")
    ax.legend()
    beside.axhline(1, color="#333333", lw=0.8)
    names = [f"{result.eps:g}" for result in results]
    beside.set_xticks(range(len(results)), names)
    beside.set(xlabel="eps", ylabel="estimate / exact", xlim=(-0.6, len(results) - 0.4))
    return Plot(
        "rare",
        "Rare events: down to the level in steps of a tenth",
        "Left: thresholds, each the best tenth of what the mixture fitted to the one before draws. "
        "Right: estimates over exact areas, bars of 4 standard errors.",
        figure,
        ("eps", "level", "threshold"),
        rows,
    )


def law(result: frequency.Result) -> Plot:
    """Errors of frequencies against the number of samples."""
    figure = canvas(WIDTH, 3.2)
    ax = figure.subplots()
    n = np.array(result.samples)
    spread = np.sqrt(result.exact * (1 - result.exact) / n)
    ax.plot(n, result.rms_error, "o", label=f"{result.runs} runs, slope {result.slope:.3f}")
    ax.plot(n, spread, color="#333333", ls="--", label="binomial")
    ax.set(xscale="log", yscale="log", xlabel="samples", ylabel="rms error of the frequency")
    ax.legend()
    return Plot(
        "law",
        "The law of large numbers",
        f"Frequency of |zeta| <= {result.eps:g} against the exact ratio of areas, "
        f"{result.exact:.6g}. The error falls like one over the root of the samples; it says "
        "nothing of any other box.",
        figure,
        ("samples", "rms error", "binomial"),
        list(zip(n.tolist(), result.rms_error, spread.tolist(), strict=True)),
    )


def bits(result: precision.Result) -> Plot:
    """Error of zeta against bits, and what a search reports that sees few of them."""
    figure = canvas(WIDTH, 3.4)
    ax, beside = figure.subplots(1, 2)
    ax.plot(result.bits, result.rms_error, marker="o", ms=4)
    ax.set(yscale="log", xlabel="mantissa bits", ylabel="rms error of zeta")
    for index, (name, sigmas) in enumerate(result.sigmas.items()):
        places, counts = np.unique(sigmas, return_counts=True)
        colour = run_style(index)["color"]
        beside.bar(places + (index - 0.5) * 0.012, counts, 0.012, label=name, color=colour)
    beside.set(xlabel="sigma, rounded to 6 bits", ylabel="reported zeros", xlim=(0, 1))
    beside.legend()
    return Plot(
        "bits",
        "Fewer bits",
        f"Left: every operation rounded; log2 of the error falls by {-result.slope:.3f} per bit. "
        "Right: what a search reports that sees sigma in steps of 1/64. 1/2 is one of them, so "
        "all within 1/128 of the line is reported exactly on it: an artefact of the format.",
        figure,
        ("bits", "rms error"),
        list(zip(result.bits, result.rms_error, strict=True)),
    )


def search(seed: int) -> Plot:
    """One search, a frame per round."""
    parts = even_windows(_ONE, _ONE.t_high - _ONE.t_low)
    best = cross_entropy(
        EulerMaclaurin(ZETA, _ONE.t_high),
        parts,
        seed,
        rounds=12,
        samples=100,
        elites=10,
        keep_samples=True,
    )
    assert best.samples is not None
    samples = np.asarray(best.samples)[0] + [0.5, parts.anchor[0]]
    figure = canvas(4.5, 3.6)
    ax = figure.subplots()
    _surface(ax, ZETA, _ONE)
    (points,) = ax.plot([], [], ".", color="w", ms=4)

    def draw(number: int) -> None:
        points.set_data(samples[number, :, 1], samples[number, :, 0])
        ax.set_title(f"round {number + 1}")

    return Plot(
        "search",
        "One search, round by round",
        "100 samples per round about the first zero; the ten best decide where the next are drawn.",
        figure,
        ("round", "sigma", "t"),
        [(number + 1, *point) for number, drawn in enumerate(samples) for point in drawn],
        animation=Animation(draw, len(samples), rate=2),
    )


def _surface(ax: Axes, function: DirichletSeries, box: Box) -> None:
    t = np.linspace(box.t_low, box.t_high, 400)
    sigma = np.linspace(box.sigma_low, box.sigma_high, 90)
    grid = sigma[:, None] + 1j * t
    sizes = np.abs(at(EulerMaclaurin(function, box.t_high), grid.ravel())).reshape(grid.shape)
    norm = LogNorm(*_LEVELS)
    image = ax.pcolormesh(t, sigma, sizes, norm=norm, cmap="cividis", shading="gouraud")
    ax.axhline(0.5, color="w", lw=0.6, ls=":")
    ax.set(xlabel="t", ylabel="sigma", xlim=(box.t_low, box.t_high))
    ax.grid(False)
    figure = ax.get_figure()
    assert figure is not None
    figure.colorbar(image, ax=ax, label="modulus", pad=0.01)


def _legend_above(ax: Axes, columns: int, markerscale: float = 1) -> None:
    ax.legend(loc="lower left", bbox_to_anchor=(0, 1), ncols=columns, markerscale=markerscale)
