"""Identities of stationary processes: exact answers without an exact solution.

With `mean` and `ratio` over samples they say whether an estimate is to be believed. For particles
with positions x (noise eps) and propulsions g (rate gamma), driven by b_x = F(x) + v0 g:

    Sigma = (v0 / eps) E[g.b_x]                     dissipation, driving = (v0 g, 0)
    Sigma = E[|b_x|^2 / eps + div_x b_x]            dissipation, driving = the drift
    E[div_g v_g] = E|v_g|^2 / gamma                 stein, field = v; or Production.residual
    E[div_g v_g] = -E[div_x b_x] where eps = 0      divergence_terms of the drift, part = x
    E[s_g.g] = -N d,  E|s|^2 = -E[div s],  ...      stein, field = g, s, ...
    E[v_g.g] = 0                                    transport, function = |g|^2 / 2
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, ArrayLike, Float

from egattn.flow.divergence import Method, divergence_terms
from egattn.flow.process import Field, Process, inverse_diffusion


def dissipation(
    process: Process,
    z: Float[Array, "*shape"],
    *,
    driving: Field | None = None,
    part: ArrayLike | None = None,
) -> Float[Array, "*shape"]:
    """Total entropy production without a score: the mean of u_i b_i / D_i + d u_i / d z_i.

    The driving u is the drift without what derives from a potential U, b = u - D grad U: what the
    velocity does against a gradient vanishes on average.

    Args:
      process: The process.
      z: A stationary sample.
      driving: u; None for the whole drift, which has more variance, and where forces are stiff
        shows the integrator's bias.
      part: Components that count, see `divergence_terms`; leave out those whose u is 0.

    Returns:
      The terms, 0 where D = 0, whose production is not defined.
    """
    field = process.drift if driving is None else driving
    u, terms = divergence_terms(field, z, part=part)
    inverse = inverse_diffusion(process.diffusion)
    found = jnp.where(inverse > 0, terms + u * process.drift(z) * inverse, 0.0)
    return found if part is None else jnp.where(jnp.asarray(part), found, 0.0)


class Stein(NamedTuple):
    """Both sides of Stein's identity, which have opposite means."""

    product: Float[Array, "*shape"]
    """s_i f_i."""
    divergence: Float[Array, "*shape"]
    """d f_i / d z_i."""


def stein(
    score: Field,
    field: Field,
    z: Float[Array, "*shape"],
    *,
    part: ArrayLike | None = None,
    method: Method = "forward",
    key: Array | None = None,
) -> Stein:
    """Stein's identity E[s_i f_i] = -E[d f_i / d z_i], of the true score and any continuous f.

    For a score of the smoothed density the samples have to be noised in the same way.

    Args:
      score: s.
      field: f.
      z: The sample.
      part: Components that count, see `divergence_terms`; 0 for others.
      method: How to differentiate f, see `divergence_terms`.
      key: Random key of "hutchinson".

    Reference:
      Hyvärinen, J. Mach. Learn. Res. 6 (2005), 695, for f = s; Stein, Ann. Stat. 9 (1981), 1135.
    """
    f, terms = divergence_terms(field, z, part=part, method=method, key=key)
    product = score(z) * f
    return Stein(product if part is None else jnp.where(jnp.asarray(part), product, 0.0), terms)


def transport(
    velocity: Field, function: Callable[[Array], Array], z: Float[Array, "*shape"]
) -> Float[Array, "*shape"]:
    """Terms v_i d phi / d z_i, whose sum has mean 0: a flow that keeps the density keeps E[phi].

    Args:
      velocity: v.
      function: phi, from a sample to a number.
      z: A stationary sample.
    """
    return velocity(z) * jax.grad(function)(z)
