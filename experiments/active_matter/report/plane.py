"""The plane that a system's maps are drawn in, and the quantities that are mapped.

One particle has a phase plane (x, g) per dimension; those of the trap are alike and independent, so
each is a sample of its own. Many particles are mapped where they are, each as a sample.
"""

from typing import NamedTuple

import numpy as np

from experiments.active_matter.report.fields import Fields
from experiments.active_matter.systems import RING, System


class Quantity(NamedTuple):
    """Something local, of each sample."""

    name: str
    """In data files."""
    label: str
    """In figures."""
    signed: bool
    """Whether it is coloured around 0."""


QUANTITIES = (
    Quantity("speed", r"$|v|_{D^{-1}}$", False),
    Quantity("v_x", r"$|v_x|$", False),
    Quantity("v_g", r"$|v_g|$", False),
    Quantity("div_v", r"$\nabla\cdot v$", True),
    Quantity("div_g_v_g", r"$\nabla_g\cdot v_g$", True),
    Quantity("div_x_v_x", r"$\nabla_x\cdot v_x$", True),
)
PRODUCTION = Quantity("production", r"$\sigma_\mathrm{tot}=v\cdot D^{-1}v$", False)


class Plane(NamedTuple):
    """Axes and their ranges."""

    axes: tuple[str, str]
    """Labels."""
    names: tuple[str, str]
    """In data files."""
    bounds: tuple[tuple[float, float], tuple[float, float]]
    """Lowest and highest value of each."""
    equal: bool
    """Whether both axes are lengths, drawn to the same scale."""


def phase_plane(system: System) -> bool:
    """Whether maps are of phase space, not of places."""
    return system.particles == 1


def make_plane(system: System, z: np.ndarray) -> Plane:
    """Chooses ranges that hold all but one in 500 of the samples on either side."""
    points = coordinates(system, z)
    low, high = np.quantile(points, [0.002, 0.998], axis=0)
    if not phase_plane(system):
        half = float(np.abs([low, high]).max()) + 1
        return Plane(("x", "y"), ("x", "y"), ((-half, half), (-half, half)), True)
    if system.period is not None:
        return Plane(("x", "g"), ("x", "g"), ((0.0, RING), (-3.0, 3.0)), False)
    x, g = (float(max(-a, b)) for a, b in zip(low, high, strict=True))
    return Plane((r"$x_1$", r"$g_1$"), ("x", "g"), ((-x, x), (-g, g)), False)


def coordinates(system: System, z: np.ndarray) -> np.ndarray:
    """Where samples lie in the plane [samples, 2], from snapshots [S, 2, N, d]."""
    if phase_plane(system):
        return np.moveaxis(z, 1, -1).reshape(-1, 2)
    return z[:, 0].reshape(-1, z.shape[-1])


def local(fields: Fields, quantity: Quantity) -> np.ndarray:
    """A quantity of each sample, in the order of `coordinates`."""
    return _each(fields, quantity).ravel()


def of_particles(fields: Fields, quantity: Quantity) -> np.ndarray:
    """A quantity of each particle in each snapshot, [S, N]."""
    found = _each(fields, quantity)
    return found if found.ndim == 2 else found.sum(-1)


def _each(fields: Fields, quantity: Quantity) -> np.ndarray:
    """Of each dimension [S, 1, d] in a phase plane, else of each particle [S, N]."""
    apart = phase_plane(fields.system)

    def summed(terms: np.ndarray) -> np.ndarray:
        return terms if apart else terms.sum(-1)

    squares, terms = summed(fields.velocity**2), summed(fields.divergence)
    production = summed(fields.production).sum(1)
    return {
        "production": production,
        "speed": np.sqrt(production),
        "v_x": np.sqrt(squares[:, 0]),
        "v_g": np.sqrt(squares[:, 1]),
        "div_v": terms.sum(1),
        "div_g_v_g": terms[:, 1],
        "div_x_v_x": terms[:, 0],
    }[quantity.name]
