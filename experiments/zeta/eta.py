"""Zeta by the alternating series with Chebyshev weights, on the device and in float32 if wanted.

The phase t ln k is what loses digits. Here the host takes cosine and sine of t0 ln k from float64,
and the device only turns them by v ln k with |v| <= 1.

Reference:
  P. Borwein, An efficient algorithm for the Riemann zeta function (1995), algorithm 2.
"""

import dataclasses
import functools
import math
from fractions import Fraction
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from experiments.zeta.evaluator import Trust, Values, check_float64

# Beyond sigma = 0.95 the factor 1 / (1 - 2**(1 - s)) amplifies errors without bound.
TRUST = Trust("the eta series", 0, 0.95, 1, 1000)
_REACH = 1.0


class EtaTable(NamedTuple):
    """Terms of the series at an anchor."""

    anchor: Float[Array, ""]
    weight: Float[Array, " terms"]
    log_k: Float[Array, " terms"]
    cos: Float[Array, " terms"]
    """Of t0 ln k."""
    sin: Float[Array, " terms"]


@dataclasses.dataclass(frozen=True)
class Eta:
    """Evaluator with enough terms for heights up to `t_high`; dtype decides the digits."""

    t_high: float
    dtype: str = "float64"
    trust = TRUST

    @property
    def terms(self) -> int:
        """Terms for the truncation to vanish in the rounding errors: 0.8912 per unit of height."""
        return math.ceil(0.8912 * self.t_high + (24 if self.dtype == "float64" else 12))

    def tables(self, anchors: Float[np.ndarray, " windows"]) -> EtaTable:
        """See `Evaluator`."""
        if self.dtype == "float64":
            check_float64()
        log_k = np.log(np.arange(1, self.terms + 1))
        phase = np.asarray(anchors, np.float64)[:, None] * log_k
        rows = (anchors, weights(self.terms), log_k, np.cos(phase), np.sin(phase))
        shapes = (phase.shape[:1], *[phase.shape] * 4)
        both = zip(rows, shapes, strict=True)
        return EtaTable(*(jnp.asarray(np.broadcast_to(x, s), self.dtype) for x, s in both))

    def values(self, table: NamedTuple, offsets: Float[Array, "points 2"]) -> Values:
        """See `Evaluator`; at most 1 away from the anchor."""
        assert isinstance(table, EtaTable)
        u, v = offsets[:, 0].astype(self.dtype), offsets[:, 1].astype(self.dtype)
        turn = v[:, None] * table.log_k
        cos, sin = jnp.cos(turn), jnp.sin(turn)
        re, im = from_phases(
            table, u, table.cos * cos - table.sin * sin, table.sin * cos + table.cos * sin
        )
        inside = TRUST.covers(u, table.anchor + v) & (jnp.abs(v) <= _REACH)
        return jnp.where(inside, re, jnp.nan), jnp.where(inside, im, jnp.nan)


def from_phases(
    table: EtaTable,
    u: Float[Array, " points"],
    cos: Float[Array, "points terms"],
    sin: Float[Array, "points terms"],
) -> Values:
    """Zeta at sigma = 1/2 + u from cosine and sine of t ln k.

    No matrix product: accelerators would round its factors to fewer digits.
    """
    size = table.weight * jnp.exp(-(u[:, None] + 0.5) * table.log_k)
    zero = jnp.zeros((), size.dtype)
    # One pass over the terms for both sums.
    re, im = jax.lax.reduce(
        (size * cos, -size * sin), (zero, zero), lambda a, b: (a[0] + b[0], a[1] + b[1]), (1,)
    )
    # 1 - 2**(1 - s), whose phase is that of the second term.
    factor = jnp.exp((0.5 - u) * math.log(2))
    a, b = 1 - factor * cos[:, 1], factor * sin[:, 1]
    norm = a * a + b * b
    return (re * a + im * b) / norm, (im * a - re * b) / norm


@functools.cache
def weights(terms: int) -> Float[np.ndarray, " terms"]:
    """(-1)**(k - 1) (1 - d_{k-1} / d_n) for k = 1 to n, exact before they are rounded."""
    d = chebyshev_sums(terms)
    exact = [(-1) ** k * (1 - Fraction(d[k], d[-1])) for k in range(terms)]
    return np.array([float(x) for x in exact])


def chebyshev_sums(terms: int) -> list[int]:
    """d_0 to d_n: n sum_{i <= k} (n + i - 1)! 4**i / ((n - i)! (2 i)!); d_n = T_n(3)."""
    # Each term from the one before: factorials of thousands would be slow.
    term = Fraction(1)
    sums = [term]
    for i in range(terms):
        term *= Fraction(4 * (terms + i) * (terms - i), (2 * i + 1) * (2 * i + 2))
        sums.append(sums[-1] + term)
    assert all(x.denominator == 1 for x in sums)
    return [int(x) for x in sums]
