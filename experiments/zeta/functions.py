"""The two functions that are searched: zeta, and one with zeros off the line as a control."""

import dataclasses
import math

import numpy as np
import numpy.typing as npt
from jaxtyping import Float
from scipy.special import loggamma


@dataclasses.dataclass(frozen=True)
class DirichletSeries:
    """f(s) = q**-s * sum_a c_a zeta(s, a / q), with a functional equation that relates s and 1 - s.

    (q / pi)**(s / 2) Gamma((s + parity) / 2) f(s) does not change when s becomes 1 - s.
    """

    name: str
    """What it is called."""
    modulus: int
    """q."""
    parity: int
    """0 or 1."""
    coefficients: tuple[tuple[int, int], ...]
    """(m, n) for c_a = m + n xi, a = 1 to the last residue that has a coefficient."""

    @property
    def shifts(self) -> list[tuple[float, float]]:
        """Pairs of c_a and a / q."""
        values = [m + n * XI for m, n in self.coefficients]
        return [(c, a / self.modulus) for a, c in enumerate(values, 1)]

    def spacing(self, t: float) -> float:
        """Mean distance of neighbouring zeros at height t."""
        # Below, the asymptotic formula makes no sense.
        return 2 * math.pi / math.log(max(self.modulus * t / (2 * math.pi), 1.5))

    def theta(self, t: Float[np.ndarray, "..."]) -> Float[np.ndarray, "..."]:
        """Angle that makes exp(i theta) f(1/2 + i t) real."""
        t = np.asarray(t, np.float64)
        gamma: npt.NDArray[np.complex128] = loggamma((0.5 + self.parity + 1j * t) / 2)
        return gamma.imag + t / 2 * math.log(self.modulus / math.pi)


XI = (math.sqrt(10 - 2 * math.sqrt(5)) - 2) / (math.sqrt(5) - 1)
ZETA = DirichletSeries("zeta", 1, 0, ((1, 0),))
DAVENPORT_HEILBRONN = DirichletSeries(
    "Davenport-Heilbronn", 5, 1, ((1, 0), (0, 1), (0, -1), (-1, 0))
)
"""Davenport and Heilbronn, J. London Math. Soc. 11 (1936): zeros off the line; no Euler product."""
