"""Zeta by the alternating series with Chebyshev weights, on the device and in float32 if wanted.

The phase t ln k is what loses digits. Here the host takes cosine and sine of t0 ln k from float64,
and the device only turns them by v ln k with |v| <= 1. It goes through the terms one by one, so
that all there is to remember of a point is its sum.

Reference:
  P. Borwein, An efficient algorithm for the Riemann zeta function (1995), algorithm 2.
"""

import dataclasses
import functools
import math
from collections.abc import Callable
from fractions import Fraction
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Complex, Float

from experiments.zeta.evaluator import Trust, Values, check_float64

# Beyond sigma = 0.95 the factor 1 / (1 - 2**(1 - s)) amplifies errors without bound.
TRUST = Trust("the eta series", 0, 0.95, 1, 1000, 1.0)
# Terms between two looks at the loop's counter.
_UNROLL = 8
# Of sin x / x and cos x by rising powers of x**2, to 4e-9 for |x| <= pi / 2.
_SIN = (0.9999999765, -0.1666664759, 0.008332899223, -0.0001980086531, 2.59043003e-06)
_COS = (
    0.9999999998,
    -0.4999999936,
    0.04166663621,
    -0.001388836084,
    2.476013551e-05,
    -2.605107633e-07,
)
# pi in two parts; of the first one a product with a small integer is exact in float32.
_PI = (3.140625, math.pi - 3.140625)


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

        def phase(column: tuple[Array, Array, Array]) -> tuple[Array, Array]:
            log_k, c, s = column
            cos, sin = cos_sin(v * log_k)
            return c * cos - s * sin, s * cos + c * sin

        re, im = from_phases(table, u, phase, (table.log_k, table.cos, table.sin))
        inside = TRUST.covers(u, table.anchor + v) & (jnp.abs(v) <= TRUST.reach)
        return jnp.where(inside, re, jnp.nan), jnp.where(inside, im, jnp.nan)


def from_phases(
    table: EtaTable,
    u: Float[Array, " points"],
    phase: Callable[[Any], tuple[Array, Array]],
    columns: Any,
) -> Values:
    """Zeta at sigma = 1/2 + u.

    No matrix product: accelerators would round its factors to fewer digits.

    Args:
      table: Terms of the series.
      u: Offsets of sigma.
      phase: Cosine and sine [N] of t ln k from what `columns` hold of k.
      columns: Arrays [terms].
    """

    def add(k: Array, total: Complex[Array, " points"]) -> Complex[Array, " points"]:
        weight, log_k, column = jax.tree.map(
            lambda x: jax.lax.dynamic_index_in_dim(x, k, keepdims=False),
            (table.weight, table.log_k, columns),
        )
        cos, sin = phase(column)
        size = weight * jnp.exp(-(u + 0.5) * log_k)
        # Complex, for two real sums would be two loops that compute everything twice.
        return total + jax.lax.complex(size * cos, -size * sin)

    terms = table.log_k.shape[0]
    zero = jnp.zeros_like(u)
    total = jax.lax.fori_loop(0, terms, add, jax.lax.complex(zero, zero), unroll=_UNROLL)
    # 1 - 2**(1 - s), whose phase is that of the second term.
    cos, sin = phase(jax.tree.map(lambda x: x[1], columns))
    factor = jnp.exp((0.5 - u) * math.log(2))
    value = total / jax.lax.complex(1 - factor * cos, factor * sin)
    return value.real, value.imag


def cos_sin(x: Float[Array, " points"]) -> tuple[Float[Array, " points"], Float[Array, " points"]]:
    """Cosine and sine of what is not large, for which JAX's float32 ones take several times longer.

    Half the angle without whole multiples of pi; where those are odd, both its cosine and its sine
    have the wrong sign, and doubling the angle makes it right.
    """
    if x.dtype != jnp.float32:
        return jnp.cos(x), jnp.sin(x)
    whole = jnp.round(x * (0.5 / math.pi))
    half = (0.5 * x - whole * _PI[0]) - whole * _PI[1]
    square = half * half
    sin, cos = half * _polynomial(_SIN, square), _polynomial(_COS, square)
    return 1 - 2 * sin * sin, 2 * sin * cos


def _polynomial(coefficients: tuple[float, ...], x: Array) -> Array:
    total = jnp.full_like(x, coefficients[-1])
    for c in coefficients[-2::-1]:
        total = total * x + c
    return total


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
