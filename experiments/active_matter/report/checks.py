"""Histograms of what has to vanish, or to average to 0, in a stationary state."""

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
from matplotlib.axes import Axes

from egattn.report.style import WIDTH, Plot, canvas
from experiments.active_matter.report.fields import Fields
from experiments.active_matter.report.subject import Subject

_BARS, _OURS, _EXACT = 62, "#0072B2", "#333333"


class Check(NamedTuple):
    """A quantity of a whole snapshot, per degree of freedom."""

    name: str
    """In data files."""
    label: str
    """In figures."""
    of: Callable[[Fields], np.ndarray]
    """Its sum over the system in each snapshot, [S]."""


def _sum(terms: np.ndarray) -> np.ndarray:
    return terms.reshape(len(terms), -1).sum(1)


def _hyvarinen(kind: int) -> Callable[[Fields], np.ndarray]:
    return lambda f: _sum(f.score[:, kind] ** 2) + _sum(f.score_divergence[:, kind])


CHECKS = (
    Check(
        "residual", r"$\nabla\cdot v+v\cdot s$", lambda f: _sum(f.divergence) + _sum(f.advection)
    ),
    Check("advection", r"$v\cdot s$", lambda f: _sum(f.advection)),
    Check("div_v", r"$\nabla\cdot v$", lambda f: _sum(f.divergence)),
    Check("div_x_v_x", r"$\nabla_x\cdot v_x$", lambda f: _sum(f.divergence[:, 0])),
    Check("div_g_v_g", r"$\nabla_g\cdot v_g$", lambda f: _sum(f.divergence[:, 1])),
    Check("score_x", r"$|s_x|^2+\nabla_x\cdot s_x$", _hyvarinen(0)),
    Check("score_g", r"$|s_g|^2+\nabla_g\cdot s_g$", _hyvarinen(1)),
    Check("production", r"$v\cdot D^{-1}v$", lambda f: _sum(f.production)),
)

_CHANGE = next(check for check in CHECKS if check.name == "div_v")


def per_dof(check: Check, fields: Fields) -> np.ndarray:
    """A check's values [S], divided by N d."""
    return check.of(fields) / fields.system.size


def checks(subject: Subject) -> Plot:
    """Histograms of all checks, with mean and standard deviation."""
    figure = canvas(WIDTH, 5.2)
    rows = []
    axes = figure.subplots(2, 4)
    for ax, check in zip(axes.ravel(), CHECKS, strict=True):
        ours = per_dof(check, subject.ours)
        exact = None if subject.exact is None else per_dof(check, subject.exact)
        # The residual's axis is as wide as div v's, against which it is judged.
        change = per_dof(_CHANGE, subject.ours) if check.name == "residual" else ours[:0]
        rows += _histogram(ax, check, ours, exact, _edges(np.concatenate([ours, change])))
    for ax in axes[:, 0]:
        ax.set_ylabel("share of samples")
    text = (
        "Distribution over held-out samples, per degree of freedom, with mean and standard "
        "deviation. The first is the equation of the stationary state itself, 0 at every point for "
        "the true score; its axis is as wide as that of div v, against which it is judged. "
        "div v, v.s and the two sums with the score are 0 on average only; the last one's mean is "
        "the entropy production rate."
    )
    if subject.exact is not None:
        text += " Outlines and the second line of numbers: the exact solution on the same samples."
    return Plot(
        "checks",
        "Checks of stationarity",
        text,
        figure,
        ("check", "from", "to", "learned_share", "exact_share"),
        rows,
        "Eight histograms; the residual is the narrowest.",
    )


def _histogram(
    ax: Axes, check: Check, ours: np.ndarray, exact: np.ndarray | None, edges: np.ndarray
) -> list[tuple]:
    shares = [np.histogram(x, edges)[0] / len(x) for x in (ours, exact) if x is not None]
    ax.stairs(shares[0], edges, fill=True, color=_OURS, alpha=0.75)
    lines = [(_moments("learned", ours), _OURS)]
    if exact is not None:
        ax.stairs(shares[1], edges, color=_EXACT, linewidth=1)
        lines.append((_moments("exact", exact), _EXACT))
    for i, (line, colour) in enumerate(lines):
        ax.text(
            0,
            1.03 + 0.085 * (len(lines) - 1 - i),
            line,
            transform=ax.transAxes,
            color=colour,
            fontsize=7.5,
        )
    ax.set_title(check.label, pad=5 + 10 * len(lines))
    ax.set_yscale("log")
    ax.set_ylim(0.5 / len(ours), 1.5)
    ax.locator_params(axis="x", nbins=4)
    last = shares[1] if exact is not None else np.full(len(shares[0]), np.nan)
    return [
        (check.name, *numbers)
        for numbers in zip(edges[:-1], edges[1:], shares[0], last, strict=True)
    ]


def _moments(name: str, values: np.ndarray) -> str:
    return f"{name}: {_short(values.mean(), True)}, std {_short(values.std())}"


def _short(value: float, sign: bool = False) -> str:
    """Four decimals, or as many digits where that is too few or too many."""
    form = ".4f" if 1e-3 <= abs(value) < 10 or value == 0 else ".1e" if abs(value) < 1e-3 else ".2f"
    return format(value, ("+" if sign else "") + form)


def _edges(values: np.ndarray) -> np.ndarray:
    """Bars that hold all but one in 1000 of the values on either side, and 0."""
    low, high = np.quantile(values, [0.001, 0.999])
    low, high = min(float(low), 0.0), max(float(high), 0.0)
    margin = 0.05 * (high - low) or 1e-6
    return np.linspace(low - margin, high + margin, _BARS if len(values) > 1000 else 22)
