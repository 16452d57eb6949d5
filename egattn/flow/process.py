"""Stochastic processes, and what relates their score to the velocity of their probability flow."""

import dataclasses
from collections.abc import Callable

import jax.numpy as jnp
import numpy as np
from jax.core import Tracer
from jaxtyping import Array, ArrayLike, Float

Field = Callable[[Array], Array]
"""A vector field: from one sample z, of any shape, to an array of that shape."""


# By identity: a process is a static argument of what is compiled for it.
@dataclasses.dataclass(frozen=True, eq=False)
class Process:
    """The process dz = b(z) dt + sqrt(2 D) dW, for one sample z of any shape."""

    drift: Field
    """b, in units of z per time."""
    diffusion: ArrayLike
    """The diagonal of D, >= 0, broadcastable to z; components with D = 0 are moved by b alone."""
    period: ArrayLike | None = None
    """Period of each component, broadcastable to z; inf for those that are not periodic."""
    origin: ArrayLike = 0.0
    """Where periods begin: a periodic component lies in [origin, origin + period)."""
    relaxation: ArrayLike | None = None
    """Rates k, broadcastable to z; where k > 0 the drift has to be -k z, and steps are exact."""

    def __post_init__(self):
        """Checks the numbers."""
        _check("diffusion", self.diffusion, lambda x: (x >= 0) & np.isfinite(x), ">= 0 and finite")
        if self.period is not None:
            _check("period", self.period, lambda x: x > 0, "> 0")
        if self.relaxation is not None:
            _check("relaxation", self.relaxation, lambda x: (x >= 0) & np.isfinite(x), ">= 0")


def _check(name: str, value: ArrayLike, valid: Callable, expected: str) -> None:
    # Inside a transformation the value is not known yet.
    if isinstance(value, Tracer):
        return
    wrong = np.extract(~valid(np.asarray(value)), value)
    if wrong.size:
        raise ValueError(f"{name} must be {expected} everywhere, got {wrong[0]}")


def wrap(
    z: Float[Array, "*shape"], period: ArrayLike | None, origin: ArrayLike = 0.0
) -> Float[Array, "*shape"]:
    """Moves periodic components into [origin, origin + period).

    Args:
      z: A sample, or several.
      period: Period of each component, broadcastable to z, inf where there is none; None for no
        period anywhere.
      origin: Where periods begin, broadcastable to z.
    """
    if period is None:
        return z
    finite = jnp.isfinite(jnp.asarray(period))
    length = jnp.where(finite, period, 1.0)
    return jnp.where(finite, origin + jnp.mod(z - origin, length), z)


def difference(
    a: Float[Array, "..."], b: Float[Array, "..."], period: ArrayLike | None
) -> Float[Array, "..."]:
    """Returns a - b, in periodic components the shortest such difference.

    Args:
      a: Where it leads to.
      b: Where it begins; broadcast against a.
      period: Period of each component, broadcastable to a - b, inf where there is none; None for
        no period anywhere.
    """
    if period is None:
        return a - b
    finite = jnp.isfinite(jnp.asarray(period))
    length = jnp.where(finite, period, 1.0)
    return a - b - length * jnp.where(finite, jnp.rint((a - b) / length), 0.0)


def velocity(process: Process, score: Field) -> Field:
    """The velocity of the probability flow, v = b - D s.

    dz/dt = v(z) carries the same densities as the process. Where D = 0, v is b, whatever s is.

    Args:
      process: The process.
      score: s, an estimate of grad log rho.

    Reference:
      Boffi & Vanden-Eijnden, arXiv 2309.12991.
    """
    return lambda z: process.drift(z) - process.diffusion * score(z)


def score_of(process: Process, velocity: Field) -> Field:
    """The score that a velocity implies, s = (b - v) / D; 0 where D = 0, which says nothing of s.

    Args:
      process: The process.
      velocity: v, an estimate of the velocity of its probability flow.
    """
    inverse = inverse_diffusion(process.diffusion)
    return lambda z: inverse * (process.drift(z) - velocity(z))


def inverse_diffusion(diffusion: ArrayLike) -> Array:
    """1 / D, and 0 where D = 0: components without noise are left out of sums weighted by it."""
    diffusion = jnp.asarray(diffusion)
    return jnp.where(diffusion > 0, 1 / jnp.where(diffusion > 0, diffusion, 1.0), 0.0)
