"""Zeta and the control by Euler-Maclaurin summation, float64 and complex numbers.

Reference:
  H. M. Edwards, Riemann's Zeta Function (1974), section 6.4; of Hurwitz's function alike.
"""

import dataclasses
import math
from typing import NamedTuple

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Complex, Float
from scipy.special import bernoulli

from experiments.zeta.evaluator import Trust, Values, check_float64
from experiments.zeta.functions import DirichletSeries

_ORDER = 15
# B_2j / (2j)!
_FACTORS = np.array([bernoulli(2 * j)[2 * j] / math.factorial(2 * j) for j in range(1, _ORDER + 1)])


class Anchor(NamedTuple):
    """An anchor's height."""

    t0: Float[Array, ""]


@dataclasses.dataclass(frozen=True)
class EulerMaclaurin:
    """Evaluator of a Dirichlet series for heights up to `t_high`."""

    function: DirichletSeries
    t_high: float
    trust = Trust("Euler-Maclaurin summation", 0, 1, 1, 1000)

    def tables(self, anchors: Float[np.ndarray, " windows"]) -> Anchor:
        """See `Evaluator`."""
        check_float64()
        return Anchor(jnp.asarray(anchors))

    def values(self, table: NamedTuple, offsets: Float[Array, "points 2"]) -> Values:
        """See `Evaluator`."""
        assert isinstance(table, Anchor)
        t = table.t0 + offsets[:, 1]
        s = (0.5 + offsets[:, 0]) + 1j * t
        coefficients, shifts = np.array(self.function.shifts).T
        total = hurwitz(s, shifts, math.ceil(self.t_high / 2) + 10) @ coefficients
        value = jnp.exp(-s * math.log(self.function.modulus)) * total
        inside = self.trust.covers(offsets[:, 0], t)
        return jnp.where(inside, value.real, jnp.nan), jnp.where(inside, value.imag, jnp.nan)


def hurwitz(
    s: Complex[Array, " points"], shifts: Float[np.ndarray, " shifts"], terms: int
) -> Complex[Array, "points shifts"]:
    """zeta(s, a) with so many terms before the correction; t / 2 + 10 suffice."""
    s = s[:, None]
    direct = jnp.exp(-s[..., None] * np.log(np.arange(terms) + shifts[:, None])).sum(-1)
    end = terms + shifts
    power = jnp.exp(-s * np.log(end))
    # s (s + 1) ... (s + 2j - 2) / end**(2j - 1) for each j.
    j = np.arange(1, _ORDER)
    ratios = (s + 2 * j - 1) * (s + 2 * j)
    rising = jnp.cumprod(jnp.concatenate([s, ratios], -1), -1)
    tail = (_FACTORS * rising[:, None] / end[:, None] ** (2 * np.arange(_ORDER) + 1)).sum(-1)
    return direct + power * (end / (s - 1) + 0.5 + tail)
