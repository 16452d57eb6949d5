"""The fast path: a Taylor polynomial per window, its coefficients from balls.

One evaluation is a Horner scheme of real numbers, whatever the height. A polynomial is used only
within the radius that it was made for, where what it leaves out is below its tolerance.
"""

import dataclasses
from typing import NamedTuple

import jax.numpy as jnp
import numpy as np
import numpy.typing as npt
from jaxtyping import Array, Float

from experiments.zeta import balls
from experiments.zeta.evaluator import Trust, Values, check_float64
from experiments.zeta.functions import DirichletSeries

_TOLERANCE = {"float32": 1e-8, "float64": 1e-15}
_MOST_TERMS = 96


class TaylorTable(NamedTuple):
    """A polynomial about 1/2 + i t0, by rising powers."""

    re: Float[Array, " terms"]
    im: Float[Array, " terms"]
    radius: Float[Array, ""]


@dataclasses.dataclass(frozen=True)
class Taylor:
    """Evaluator within a radius of each anchor; dtype decides the digits."""

    function: DirichletSeries
    radius: float
    dtype: str = "float64"
    trust = Trust("a Taylor polynomial", 0, 1, 1, 1e6)

    def tables(self, anchors: Float[np.ndarray, " windows"]) -> TaylorTable:
        """See `Evaluator`.

        Raises:
          ValueError: If the radius is too large for a polynomial of fewer than 96 terms.
          NotImplementedError: Without python-flint.
        """
        if self.dtype == "float64":
            check_float64()
        rows = [self._coefficients(float(t)) for t in anchors]
        longest = max(map(len, rows))
        filled = np.array([np.pad(row, (0, longest - len(row))) for row in rows], np.complex128)
        radius = np.full(len(rows), self.radius)
        parts = (filled.real, filled.imag, radius)
        return TaylorTable(*(jnp.asarray(x, self.dtype) for x in parts))

    def values(self, table: NamedTuple, offsets: Float[Array, "points 2"]) -> Values:
        """See `Evaluator`."""
        assert isinstance(table, TaylorTable)
        u, v = offsets[:, 0].astype(self.dtype), offsets[:, 1].astype(self.dtype)
        re, im = jnp.broadcast_to(table.re[-1], u.shape), jnp.broadcast_to(table.im[-1], u.shape)
        for k in range(table.re.shape[0] - 2, -1, -1):
            re, im = re * u - im * v + table.re[k], re * v + im * u + table.im[k]
        inside = u * u + v * v <= table.radius**2 * (1 + 8 * jnp.finfo(u.dtype).eps)
        return jnp.where(inside, re, jnp.nan), jnp.where(inside, im, jnp.nan)

    def _coefficients(self, t0: float) -> npt.NDArray[np.complex128]:
        """As many coefficients as the radius needs."""
        terms = 32
        while terms <= _MOST_TERMS:
            jet = np.array([complex(c) for c in balls.jet_at(self.function, 0.5, t0, terms)])
            size = np.abs(jet) * self.radius ** np.arange(terms)
            # The last quarter shows how fast what follows falls off.
            left = size[::-1].cumsum()[::-1]
            enough = np.flatnonzero(left <= _TOLERANCE[self.dtype] * size.max() / 2)
            if enough.size and enough[0] <= 3 * terms // 4:
                return jet[: enough[0]]
            terms += 32
        raise ValueError(
            f"expected a radius for which {_MOST_TERMS} terms suffice at height {t0:.6g}, "
            f"got {self.radius:g}"
        )
