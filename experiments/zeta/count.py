"""Number of zeros in a box by the argument principle in floating point: no proof, a check."""

import numpy as np

from experiments.zeta.box import Box
from experiments.zeta.evaluator import Evaluator, at

_STEP, _SHORTEST = 0.05, 1e-6


def count(evaluator: Evaluator, box: Box) -> int:
    """Adds the function's changes of argument along the boundary, each below a right angle.

    Where one is not, points are put in between.

    Raises:
      ValueError: If a zero lies on the boundary or next to it.
    """
    corners = box.corners()
    sides = zip(corners, corners[1:] + corners[:1], strict=True)
    points = np.concatenate(
        [np.linspace(a, b, 1 + int(np.ceil(abs(b - a) / _STEP)))[:-1] for a, b in sides]
    )
    points = np.append(points, points[0])
    values = at(evaluator, points)
    while True:
        with np.errstate(divide="ignore", invalid="ignore"):
            turns = np.angle(values[1:] / values[:-1])
        (wide,) = np.nonzero(~(np.abs(turns) < np.pi / 2))
        if not wide.size:
            return round(turns.sum() / (2 * np.pi))
        middles = (points[wide] + points[wide + 1]) / 2
        if np.abs(points[wide + 1] - points[wide]).min() < _SHORTEST:
            raise ValueError(f"a zero lies on the boundary of {box}, near {middles[0]:.9g}")
        points = np.insert(points, wide + 1, middles)
        values = np.insert(values, wide + 1, at(evaluator, middles, float(points.imag.mean())))
