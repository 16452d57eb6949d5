"""The ring solved on a grid: the stationary Fokker-Planck equation, with SciPy alone.

Two phase-space dimensions are few enough for a direct solution. It shares no code with what it
judges: neither JAX, nor the system's force, nor samples.

The current rho v has no divergence, so it comes from a stream function psi: rho v_x = d psi / d g
and rho v_g = -d psi / d x. Orbits of the probability flow are level lines of psi; all are closed.
"""

import dataclasses
import functools
from typing import Any, NamedTuple

import numpy as np
from scipy.integrate import solve_ivp
from scipy.interpolate import RectBivariateSpline, RegularGridInterpolator
from scipy.optimize import root
from scipy.sparse import coo_array, csc_array, csr_array, eye_array
from scipy.sparse.linalg import splu

# Beyond this many standard deviations of g there is less than 1e-8 of the probability.
_REACH = 6.0


class Ring(NamedTuple):
    """Two particles on a circle, in their relative coordinates; the paper's numbers."""

    speed: float = 0.25
    """v0."""
    noise: float = 0.1
    """eps."""
    rate: float = 0.1
    """gamma."""
    strength: float = 2.5
    """k."""
    stiffness: float = 7.5
    """beta."""
    length: float = 16.0
    """Circumference."""

    def force(self, x: np.ndarray) -> np.ndarray:
        """Repulsion from 0, which is also `length`."""
        r = x - self.length * np.rint(x / self.length)
        push = np.logaddexp(0, self.stiffness * (2 - np.abs(r))) / self.stiffness
        return self.strength * push * np.sign(r)


PUBLISHED = Ring()
"""The paper's."""


class Fields(NamedTuple):
    """Velocity and its derivatives at points, each [..., 2] for x and g."""

    velocity: np.ndarray
    """v."""
    divergence: np.ndarray
    """d v_x / d x and d v_g / d g."""


@dataclasses.dataclass(frozen=True, eq=False)
class Solution:
    """The stationary state on a grid."""

    ring: Ring
    x: np.ndarray
    """Centres of cells [n]."""
    g: np.ndarray
    """Centres of cells [m]."""
    density: np.ndarray
    """rho [n, m]."""
    velocity: np.ndarray
    """v of the probability flow [2, n, m]."""
    stream: np.ndarray
    """psi at the corners of cells [n + 1, m + 1]: edges of x from 0, of g from the lowest."""

    @property
    def edges(self) -> tuple[np.ndarray, np.ndarray]:
        """Of cells, in x and g."""
        n, m = self.density.shape
        return np.linspace(0, self.ring.length, n + 1), np.linspace(-_REACH, _REACH, m + 1)

    @functools.cached_property
    def _splines(self) -> list[RectBivariateSpline]:
        # A few cells of the next turn on either side make the splines periodic.
        more = 8
        dx = self.ring.length / len(self.x)
        x = (np.arange(-more, len(self.x) + more) + 0.5) * dx
        return [
            RectBivariateSpline(x, self.g, np.pad(v, ((more, more), (0, 0)), mode="wrap"))
            for v in self.velocity
        ]

    def fields(self, z: np.ndarray) -> Fields:
        """Velocity and divergence terms at points z [..., 2], by cubic splines."""
        x, g = np.mod(z[..., 0], self.ring.length), z[..., 1]
        v_x, v_g = self._splines
        velocity = np.stack([v_x.ev(x, g), v_g.ev(x, g)], -1)
        terms = np.stack([v_x.ev(x, g, dx=1), v_g.ev(x, g, dy=1)], -1)
        return Fields(velocity, terms)

    def stream_at(self, z: np.ndarray) -> np.ndarray:
        """psi at points z [..., 2], between corners linearly."""
        return RegularGridInterpolator(self.edges, self.stream)(z)

    def mean(self, quantity: np.ndarray) -> np.ndarray:
        """Stationary mean of a quantity [..., n, m]."""
        return np.sum(self.density * quantity, (-2, -1)) / self.density.sum()

    @property
    def production(self) -> np.ndarray:
        """Entropy production of x and of g."""
        diffusion = np.array([self.ring.noise, self.ring.rate])
        return self.mean(self.velocity**2) / diffusion

    def centre(self, guess: tuple[float, float] = (3.3, -0.2)) -> np.ndarray:
        """The point (x, g) about which the flow turns; its mirror image is (length - x, -g)."""
        return root(lambda z: self.fields(z).velocity, guess, tol=1e-10).x

    def orbit(self, start: tuple[float, float], longest: float = 1000.0) -> Any:
        """Follows the flow once round.

        Args:
          start: (x, g) on the line x = start, which has to be crossed upwards.
          longest: Time after which to give up.

        Returns:
          `scipy.integrate.solve_ivp`'s answer: `t[-1]` is the period, `y` the orbit.
        """

        def returned(t, z):
            return z[0] - start[0]

        # The start itself is the first crossing.
        returned.terminal, returned.direction = 2, 1
        return solve_ivp(
            lambda t, z: self.fields(z).velocity,
            (0, longest),
            start,
            rtol=1e-8,
            atol=1e-10,
            events=returned,
            max_step=0.5,
        )


def solve(cells: tuple[int, int], ring: Ring = PUBLISHED) -> Solution:
    """Solves div(b rho - D grad rho) = 0.

    Finite volumes whose fluxes are exact where drift and flux are constant between two centres, so
    that densities stay positive however strong the force.

    Args:
      cells: Number of cells along x, which is periodic, and along g, from -6 to 6 without flux
        through the ends.
      ring: The system.

    Returns:
      The solution; its error falls with the square of the cell.

    Reference:
      Scharfetter & Gummel, IEEE Trans. Electron Devices 16 (1969), 64.
    """
    n, m = cells
    dx, dg = ring.length / n, 2 * _REACH / m
    x, g = (np.arange(n) + 0.5) * dx, -_REACH + (np.arange(m) + 0.5) * dg
    index = np.arange(n * m).reshape(n, m)
    right, up = np.roll(index, -1, 0), index[:, 1:]
    # Faces to the right of each cell; the last one is x = 0, where forces of both sides cancel.
    drift = ring.force((np.arange(n) + 1) * dx)
    drift[-1] = 0.0
    across = _fluxes(drift[:, None] + ring.speed * g, ring.noise, dx, index, right)
    along = np.broadcast_to(-ring.rate * (g[:-1] + dg / 2), (n, m - 1))
    upwards = _fluxes(along, ring.rate, dg, index[:, :-1], up)
    operator: Any = dg * _outflow(index, right) @ across
    operator += dx * _outflow(index[:, :-1], up) @ upwards
    density = _kernel(operator.tocsc()).reshape(n, m)
    density /= density.sum() * dx * dg
    j_x = (across @ density.ravel()).reshape(n, m)
    j_g = (upwards @ density.ravel()).reshape(n, m - 1)
    # Between faces, and 0 through the ends.
    current = np.stack([(j_x + np.roll(j_x, 1, 0)) / 2, _centred(j_g)])
    stream = np.zeros((n + 1, m + 1))
    stream[1:, 1:] = np.cumsum(j_x, 1) * dg
    stream[0] = stream[-1]
    return Solution(ring, x, g, density, current / density, stream)


@functools.cache
def production(ring: Ring) -> np.ndarray | None:
    """Entropy production of x and of g, from two grids to cells of no size; None if they differ."""
    coarse, fine = (solve((200 * k, 60 * k), ring).production for k in (1, 2))
    if not np.allclose(coarse, fine, rtol=0.02, atol=1e-9):
        return None
    return fine + (fine - coarse) / 3


def _fluxes(
    drift: np.ndarray, diffusion: float, width: float, before: np.ndarray, behind: np.ndarray
) -> csr_array:
    """The matrix from densities to fluxes through faces, from cells `before` to those `behind`."""
    ratio = drift * width / diffusion
    rate = diffusion / width
    faces = np.arange(drift.size)
    values = np.concatenate(
        [(rate * _bernoulli(-ratio)).ravel(), -(rate * _bernoulli(ratio)).ravel()]
    )
    columns = np.concatenate([before.ravel(), behind.ravel()])
    shape = (drift.size, int(max(before.max(), behind.max())) + 1)
    return coo_array((values, (np.tile(faces, 2), columns)), shape).tocsr()


def _bernoulli(x: np.ndarray) -> np.ndarray:
    """x / (exp(x) - 1)."""
    small = np.abs(x) < 1e-6
    safe = np.where(small, 1.0, x)
    return np.where(small, 1 - x / 2, safe / np.expm1(np.minimum(safe, 700)))


def _outflow(before: np.ndarray, behind: np.ndarray) -> csr_array:
    """The matrix from fluxes through faces to what leaves each cell."""
    faces = np.arange(before.size)
    rows = np.concatenate([before.ravel(), behind.ravel()])
    values = np.repeat([1.0, -1.0], before.size)
    shape = (int(max(before.max(), behind.max())) + 1, before.size)
    return coo_array((values, (rows, np.tile(faces, 2))), shape).tocsr()


def _kernel(operator: csc_array) -> np.ndarray:
    """The vector that a matrix with columns of sum 0 maps to 0, by inverse iteration."""
    # Just off the singular matrix, whose other eigenvalues are far larger.
    diagonal = operator.diagonal()
    shift = 1e-13 * np.abs(diagonal).max()
    factors = splu((operator + shift * eye_array(diagonal.size, format="csc")).tocsc())
    vector = np.ones(diagonal.size)
    for _ in range(2):
        vector = factors.solve(vector / np.abs(vector).max())
    return vector


def _centred(fluxes: np.ndarray) -> np.ndarray:
    """Fluxes between cells, averaged to their centres; none through the ends."""
    padded = np.pad(fluxes, ((0, 0), (1, 1)))
    return (padded[:, 1:] + padded[:, :-1]) / 2
