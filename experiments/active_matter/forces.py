"""Forces between particles, with their divergence in closed form."""

from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

REACH = 4.0
"""Distance, in particle radii, beyond which particles neither feel nor see each other: there the
repulsion is below 1e-7 of its strength."""


def repulsion(
    x: Float[Array, "particles dimensions"],
    strength: Any,
    stiffness: Any,
    period: float | None = None,
    fading: tuple[Any, Any] | None = None,
) -> Float[Array, "particles dimensions"]:
    """Soft repulsion of all pairs: phi(2 - r) along r, phi(y) = log(1 + exp(beta y)) / beta.

    Args:
      x: Positions, in particle radii.
      strength: Mobility k.
      stiffness: beta.
      period: Side of the periodic box, whose nearest image counts; None for none.
      fading: Distances at which it begins to fade and is 0; None for never.

    Returns:
      The force on each particle.

    Reference:
      Boffi & Vanden-Eijnden, arXiv 2309.12991, the pairwise force.
    """
    delta, distance, others = pairs(x, period)
    push = softplus(stiffness * (2 - distance)) / (stiffness * distance) * others
    if fading is not None:
        push = push * fade(distance, *fading)
    return strength * jnp.sum(push * delta, 2).T


def repulsion_divergence(
    x: Float[Array, "particles dimensions"],
    strength: float,
    stiffness: float,
    period: float | None = None,
) -> Float[Array, " particles"]:
    """The divergence of each particle's `repulsion` with respect to its own position."""
    _, distance, others = pairs(x, period)
    y = stiffness * (2 - distance)
    transverse = (x.shape[1] - 1) * softplus(y) / (stiffness * distance)
    return strength * jnp.sum((transverse - jax.nn.sigmoid(y)) * others, 1)


def pairs(
    x: Float[Array, "particles dimensions"], period: float | None
) -> tuple[Float[Array, "dimensions n n"], Float[Array, "n n"], Float[Array, "n n"]]:
    """Displacements x_i - x_j, distances (1 from itself), and 1 for pairs of two particles."""
    # Dimensions first: loops over particles are innermost, which vectorise.
    delta = x.T[:, :, None] - x.T[:, None, :]
    if period is not None:
        delta = delta - period * jnp.round(delta / period)
    same = jnp.eye(len(x), dtype=x.dtype)
    # From itself at distance 1: the root has no derivative at 0.
    return delta, jnp.sqrt(jnp.sum(delta**2, 0) + same), 1 - same


def fade(r: Float[Array, "..."], start: Any, end: Any) -> Float[Array, "..."]:
    """1 up to `start`, 0 from `end` on, with two continuous derivatives."""
    t = jnp.clip((r - start) / (end - start), 0, 1)
    return 1 - t**3 * (10 - 15 * t + 6 * t**2)


def softplus(y: Float[Array, "..."]) -> Float[Array, "..."]:
    """log(1 + exp(y)), in fewer instructions than JAX's, which is exact where it is tiny too."""
    return jnp.maximum(y, 0) + jnp.log(1 + jnp.exp(-jnp.abs(y)))


def ring_force(
    x: Float[Array, "1 1"], strength: float, stiffness: float, period: float
) -> Float[Array, "1 1"]:
    """Repulsion from 0 of the one relative coordinate of two particles on a circle."""
    r = x - period * jnp.round(x / period)
    return strength * softplus(stiffness * (2 - jnp.abs(r))) / stiffness * jnp.sign(r)


def ring_divergence(
    x: Float[Array, "1 1"], strength: float, stiffness: float, period: float
) -> Float[Array, " 1"]:
    """The derivative of `ring_force`, without its jump at 0, which no particle crosses."""
    r = x - period * jnp.round(x / period)
    return -strength * jax.nn.sigmoid(stiffness * (2 - jnp.abs(r)))[:, 0]
