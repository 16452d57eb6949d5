"""What the evaluators have in common: points as offsets from an anchor, and regions of trust.

A point is s = 1/2 + u + i (t0 + v). Its anchor t0 is a float64 on the host; u and v are what the
device sees, so that neither dtype loses digits to a large t.
"""

import functools
import math
from typing import NamedTuple, Protocol

import jax
import jax.numpy as jnp
import numpy as np
import numpy.typing as npt
from jaxtyping import Array, Bool, Float

from experiments.zeta.box import Box

Values = tuple[Float[Array, " points"], Float[Array, " points"]]
"""Real and imaginary part."""


class Trust(NamedTuple):
    """Where an evaluator may be used."""

    name: str
    sigma_low: float
    sigma_high: float
    t_low: float
    t_high: float
    reach: float = math.inf
    """In t, on either side of an anchor, where that does not depend on the evaluator's settings."""

    def check(self, box: Box) -> None:
        """Raises ValueError unless the box lies within."""
        inside = self.sigma_low <= box.sigma_low and box.sigma_high <= self.sigma_high
        if not inside or box.t_low < self.t_low or box.t_high > self.t_high:
            raise ValueError(
                f"{self.name} is to be trusted within sigma [{self.sigma_low:g}, "
                f"{self.sigma_high:g}] and t [{self.t_low:g}, {self.t_high:g}], got {box}"
            )

    def covers(self, u: Array, t: Array) -> Bool[Array, " points"]:
        """Which points lie within; rounding of the sides is forgiven."""
        sigma = u + 0.5
        slack = 4 * jnp.finfo(sigma.dtype).eps
        sides = (sigma >= self.sigma_low - slack) & (sigma <= self.sigma_high + slack)
        return sides & (t >= self.t_low * (1 - slack)) & (t <= self.t_high * (1 + slack))


class Evaluator(Protocol):
    """A way to compute a function near anchors."""

    @property
    def trust(self) -> Trust:
        """Where it may be used."""
        ...

    def tables(self, anchors: Float[np.ndarray, " windows"]) -> NamedTuple:
        """What `values` needs for each anchor: arrays [W, ...]."""
        ...

    def values(self, table: NamedTuple, offsets: Float[Array, "points 2"]) -> Values:
        """The function at offsets (u, v) from one anchor; NaN outside the region of trust."""
        ...


def check_float64() -> None:
    """Raises ValueError where JAX would make float32 of every float64."""
    if jnp.result_type(float) != jnp.float64:
        raise ValueError("expected float64: enter jax.enable_x64(True)")


def modulus(values: Values) -> Float[Array, " points"]:
    """Absolute value."""
    return jnp.hypot(*values)


def at(
    evaluator: Evaluator, s: npt.ArrayLike, anchor: float | None = None
) -> npt.NDArray[np.complex128]:
    """The function at complex points.

    Args:
      evaluator: How to compute it.
      s: Points [N].
      anchor: t0; default: the middle of their heights.

    Raises:
      ValueError: If a point lies outside the region of trust.
    """
    s = np.atleast_1d(np.asarray(s, np.complex128))
    t0 = (s.imag.min() + s.imag.max()) / 2 if anchor is None else anchor
    evaluator.trust.check(Box(s.real.min(), s.real.max(), s.imag.min(), s.imag.max()))
    table = jax.tree.map(lambda leaf: leaf[0], evaluator.tables(np.array([t0])))
    re, im = _values(evaluator, table, jnp.asarray(np.stack([s.real - 0.5, s.imag - t0], -1)))
    values = np.asarray(re, np.float64) + 1j * np.asarray(im, np.float64)
    if np.isnan(values).any():
        raise ValueError(f"{evaluator.trust.name} reaches not so far from its anchor {t0:.6g}")
    return values


@functools.partial(jax.jit, static_argnames="evaluator")
def _values(evaluator: Evaluator, table: NamedTuple, offsets: Array) -> Values:
    return evaluator.values(table, offsets)
