"""The textbook's way to zeros on the line: where Z(t) changes its sign, a root is bracketed."""

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
from scipy.optimize import toms748

from experiments.zeta.box import Box
from experiments.zeta.euler_maclaurin import EulerMaclaurin
from experiments.zeta.evaluator import at
from experiments.zeta.functions import ZETA, DirichletSeries
from experiments.zeta.riemann_siegel import hardy_z

_STEP = 0.2


class Scan(NamedTuple):
    """What a scan found; of zeros off the line, and of two within a step, it sees nothing."""

    zeros: np.ndarray
    """Heights."""
    evaluations: int


def sign_scan(function: DirichletSeries, box: Box, step: float = _STEP) -> Scan:
    """Zeros on the line between the heights of a box, by steps of so much and TOMS 748.

    Raises:
      ValueError: If the heights are beyond what an evaluator is to be trusted with.
    """
    z = _real_function(function, box)
    calls = 0

    def counted(t: float) -> float:
        nonlocal calls
        calls += 1
        return float(z(np.array([t]))[0])

    grid = np.append(np.arange(box.t_low, box.t_high, step), box.t_high)
    signs = np.sign(z(grid))
    brackets = np.flatnonzero(signs[1:] * signs[:-1] < 0)
    zeros = [
        toms748(counted, grid[i], grid[i + 1], xtol=1e-12, rtol=4 * np.finfo(float).eps)
        for i in brackets
    ]
    return Scan(np.array(zeros), len(grid) + calls)


def _real_function(function: DirichletSeries, box: Box) -> Callable[[np.ndarray], np.ndarray]:
    """Z(t) by Euler-Maclaurin summation; of zeta above its trust by the Riemann-Siegel formula."""
    limit = EulerMaclaurin.trust.t_high
    if function != ZETA:
        EulerMaclaurin.trust.check(box)
    evaluator = EulerMaclaurin(function, min(box.t_high, limit))
    middle = (box.t_low + evaluator.t_high) / 2

    def direct(t: np.ndarray) -> np.ndarray:
        return np.real(np.exp(1j * function.theta(t)) * at(evaluator, 0.5 + 1j * t, middle))

    if function != ZETA or box.t_high <= limit:
        return direct

    def either(t: np.ndarray) -> np.ndarray:
        low, values = t <= limit, np.empty_like(t)
        if low.any():
            values[low] = direct(t[low])
        if not low.all():
            values[~low] = hardy_z(t[~low])
        return values

    return either
