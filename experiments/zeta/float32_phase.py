"""Zeta in float32 from an absolute height: what the anchors of `Eta` are there to avoid.

A float32 near 100 is 8e-6 apart from the next one, and t ln k loses what that leaves. "naive" takes
the phase as it comes, "split" multiplies t by ln k / 2 pi in exact pieces and keeps the fractions.
"""

import dataclasses
import math
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from experiments.zeta.eta import Eta, EtaTable, from_phases
from experiments.zeta.evaluator import Trust, Values

# Two factors of so many mantissa bits have an exact product.
_BITS = 11


@dataclasses.dataclass(frozen=True)
class Float32Phase:
    """Evaluator with anchor 0, so that offsets are heights."""

    t_high: float
    phase: Literal["naive", "split"]

    @property
    def trust(self) -> Trust:
        """The naive phase is for demonstration."""
        return Trust(f"float32 with {self.phase} phase", 0, 0.95, 1, self._limit)

    @property
    def _limit(self) -> float:
        return 100 if self.phase == "naive" else 1000

    def tables(self, anchors: Float[np.ndarray, " windows"]) -> EtaTable:
        """See `Evaluator`."""
        if np.any(anchors):
            raise ValueError(f"expected anchors 0, got {anchors}")
        return Eta(self.t_high, "float32").tables(anchors)

    def values(self, table: NamedTuple, offsets: Float[Array, "points 2"]) -> Values:
        """See `Evaluator`."""
        assert isinstance(table, EtaTable)
        u, t = offsets[:, 0].astype("float32"), offsets[:, 1].astype("float32")
        naive = self.phase == "naive"

        def phase(column: Any) -> tuple[Array, Array]:
            angle = t * column if naive else 2 * math.pi * _turns(t, *column)
            return jnp.cos(angle), jnp.sin(angle)

        columns = table.log_k if naive else _pieces(table.log_k.shape[-1])
        re, im = from_phases(table, u, phase, columns)
        inside = self.trust.covers(u, t)
        return jnp.where(inside, re, jnp.nan), jnp.where(inside, im, jnp.nan)


def _pieces(terms: int) -> tuple[Float[Array, " terms"], ...]:
    """ln k / 2 pi as a sum of two short numbers and a small one."""
    rest, pieces = np.log(np.arange(1, terms + 1)) / (2 * np.pi), []
    for _ in range(2):
        pieces.append(_rounded(rest))
        rest = rest - pieces[-1]
    return tuple(jnp.asarray(x, "float32") for x in (*pieces, rest))


def _turns(t: Array, first: Array, second: Array, rest: Array) -> Float[Array, " points"]:
    """t ln k / 2 pi without whole turns."""
    coarse = jax.lax.reduce_precision(t, 8, _BITS)
    products = [x * piece for x in (coarse, t - coarse) for piece in (first, second)]
    return sum(x - jnp.round(x) for x in products) + t * rest


def _rounded(x: np.ndarray) -> np.ndarray:
    fraction, exponent = np.frexp(x)
    return np.ldexp(np.rint(fraction * 2 ** (_BITS + 1)), exponent - _BITS - 1)
