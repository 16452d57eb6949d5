"""Zeta in float32 from an absolute height: what the anchors of `Eta` are there to avoid.

A float32 near 100 is 8e-6 apart from the next one, and t ln k loses what that leaves. "naive" takes
the phase as it comes, "split" multiplies t by ln k / 2 pi in exact pieces and keeps the fractions.
"""

import dataclasses
import math
from typing import Literal, NamedTuple

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
        if self.phase == "naive":
            angle = t[:, None] * table.log_k
        else:
            angle = 2 * math.pi * self._turns(t, table.log_k.shape[-1])
        re, im = from_phases(table, u, jnp.cos(angle), jnp.sin(angle))
        inside = self.trust.covers(u, t)
        return jnp.where(inside, re, jnp.nan), jnp.where(inside, im, jnp.nan)

    def _turns(self, t: Array, terms: int) -> Float[Array, "points terms"]:
        """t ln k / 2 pi without whole turns."""
        factor = np.log(np.arange(1, terms + 1)) / (2 * np.pi)
        high, low = np.float64(0), []
        for _ in range(2):
            piece = _rounded(factor - high)
            low.append(piece)
            high = high + piece
        rest = (factor - high).astype(np.float32)
        coarse = jax.lax.reduce_precision(t, 8, _BITS)[:, None]
        fine = t[:, None] - coarse
        products = [x * jnp.float32(piece) for x in (coarse, fine) for piece in low]
        return sum(x - jnp.round(x) for x in products) + t[:, None] * rest


def _rounded(x: np.ndarray) -> np.ndarray:
    fraction, exponent = np.frexp(x)
    return np.ldexp(np.rint(fraction * 2 ** (_BITS + 1)), exponent - _BITS - 1)
