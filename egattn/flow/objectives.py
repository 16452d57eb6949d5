"""Objectives whose minimiser is a score or the velocity of a probability flow.

Each takes one sample and returns an array of its shape: the term of each component. Their sum, or a
weighted sum, is the loss; its mean over the batch is what to minimise. Minus the expectation is a
lower bound, whatever the network, see each function; `egattn.flow.Production.bound` is that of the
entropy production.
"""

from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer
from jaxtyping import Array, ArrayLike, Float

from egattn.flow.divergence import Method, divergence_terms
from egattn.flow.integrate import transition
from egattn.flow.process import Field, Process, difference, inverse_diffusion, wrap


def implicit_score_matching(
    score: Field,
    z: Float[Array, "*shape"],
    *,
    part: ArrayLike | None = None,
    method: Method = "forward",
    key: Array | None = None,
    noise: ArrayLike = 0.0,
    probes: int = 1,
) -> Float[Array, "*shape"]:
    """Implicit score matching, s_i^2 + 2 d s_i / d z_i.

    Its expectation is E[(s_i - s*_i)^2] - E[s*_i^2] with s* the true score, in each component: it
    is least at s*, and minus it is a lower bound of E[s*_i^2]. Both hold for continuous s only, see
    `egattn.flow.check_continuous`.

    Args:
      score: s.
      z: The sample.
      part: Components that count, see `divergence_terms`; 0 is returned for others.
      method: How to differentiate, see `divergence_terms`.
      key: Random key, for "hutchinson" and for noise.
      noise: Standard deviation of the normal noise that is added to z, broadcastable to it. With
        noise s* is the score of the density smoothed by it, and the bound is of that.
      probes: Number of probes of "hutchinson".

    Raises:
      ValueError: If there is noise but no key.

    Reference:
      Hyvärinen, J. Mach. Learn. Res. 6 (2005), 695.
    """
    if isinstance(noise, Tracer) or np.any(noise):
        if key is None:
            raise ValueError("expected a key for noise, got none")
        key, key_noise = jax.random.split(key)
        z = z + noise * jax.random.normal(key_noise, z.shape, z.dtype)
    value, terms = divergence_terms(score, z, part=part, method=method, key=key, probes=probes)
    return _masked(value**2 + 2 * terms, part)


def denoising(
    score: Field,
    z: Float[Array, "*shape"],
    key: Array,
    *,
    sigma: ArrayLike,
    part: ArrayLike | None = None,
) -> Float[Array, "*shape"]:
    """Denoising, s_i(z')^2 + 2 s_i(z') n_i / sigma_i at z' = z + sigma n, mean over n and -n.

    It has the minimiser, expectation and bound of `implicit_score_matching` with that noise, for
    discontinuous s too, and no divergence; its variance grows like 1 / sigma.

    Args:
      score: s.
      z: The sample; z' is not put back into a period.
      key: Random key.
      sigma: Standard deviation of the noise, broadcastable to z. Where it is 0, z stays as it is
        and 0 is returned: the smoothed density says nothing of s there.
      part: Components that count, boolean, broadcastable to z; 0 is returned for others.

    Reference:
      Vincent, Neural Comput. 23 (2011), 1661.
    """
    sigma = jnp.broadcast_to(jnp.asarray(sigma, z.dtype), z.shape)
    return _masked(_antithetic(score, z, sigma, jax.random.normal(key, z.shape, z.dtype)), part)


def one_step_denoising(
    score: Field,
    process: Process,
    z: Float[Array, "*shape"],
    key: Array,
    *,
    step: ArrayLike,
    part: ArrayLike | None = None,
) -> Float[Array, "*shape"]:
    """Denoising of one `egattn.flow.transition`: `denoising` with the step's own noise.

    The minimiser is the score of the law of the sample one such step later. From a stationary z
    that law is off the stationary one by O(h^2), without the smoothing of `denoising`.

    Args:
      score: s.
      process: The process.
      z: The sample before the step.
      key: Random key.
      step: Duration of the step.
      part: Components that count, boolean, broadcastable to z; 0 is returned for others, and where
        D = 0.
    """
    mean, deviation = transition(process, z, step)
    noise = jax.random.normal(key, z.shape, z.dtype)
    place = partial(wrap, period=process.period, origin=process.origin)
    return _masked(_antithetic(score, mean, deviation, noise, place), part)


def _antithetic(
    score: Field, mean: Array, deviation: Array, noise: Array, place: Field = lambda x: x
) -> Array:
    target = jnp.where(deviation > 0, noise / jnp.where(deviation > 0, deviation, 1.0), 0.0)
    ahead, back = (score(place(mean + sign * deviation * noise)) for sign in (1, -1))
    terms = (ahead**2 + back**2) / 2 + (ahead - back) * target
    return jnp.where(deviation > 0, terms, 0.0)


def velocity_matching(
    velocity: Field,
    z: Float[Array, "*shape"],
    ahead: Float[Array, "ends *shape"],
    *,
    diffusion: ArrayLike,
    duration: ArrayLike,
    period: ArrayLike | None = None,
) -> Float[Array, "*shape"]:
    """Velocity matching, v_i(z')^2 / D_i - (v_i(z) + v_i(z')) (z'_i - z_i) / (D_i h), mean over z'.

    The velocity of the probability flow is the mean of (z' - z) / h given the point midway: up to
    O(h) the expectation is E[(v_i - v*_i)^2 / D_i] - E[v*_i^2 / D_i], so minus the sum bounds the
    total entropy production from below. It needs neither score, divergence nor drift, so recorded
    trajectories will do, and it bears discontinuous v.

    Args:
      velocity: v.
      z: A stationary sample.
      ahead: Where it is after h: one end, or two whose noise is opposite, which take away most of
        the variance, see `egattn.flow.ends`.
      diffusion: D, broadcastable to z; 0 is returned where it is 0.
      duration: h. Take several steps of the integrator: a single long one has another stationary
        law than the process.
      period: Period of each component, see `egattn.flow.difference`.

    Reference:
      After Boffi & Vanden-Eijnden, arXiv 2411.14317.
    """
    here, there = velocity(z), jax.vmap(velocity)(ahead)
    rate = difference(ahead, z, period) / duration
    return inverse_diffusion(diffusion) * (there**2 - (here + there) * rate).mean(0)


def supervised(field: Field, target: Field, z: Float[Array, "*shape"]) -> Float[Array, "*shape"]:
    """Squared distance from a known field: a start for training, or a measure of it.

    Args:
      field: The network.
      target: What it should be, say the score b / D of an equilibrium.
      z: The sample.
    """
    return (field(z) - target(z)) ** 2


class Penalties(NamedTuple):
    """Penalties on what vanishes in a stationary state, with v the velocity and s the score."""

    divergence: Float[Array, ""]
    """(E div v)^2."""
    advection: Float[Array, ""]
    """(E v.s)^2."""
    residual: Float[Array, ""]
    """E[(div v + v.s)^2]."""


def penalties(divergence: Float[Array, " batch"], advection: Float[Array, " batch"]) -> Penalties:
    """Stationarity penalties of a batch; the batch's means stand inside the squares.

    Args:
      divergence: div v of each sample.
      advection: v.s of each sample: `egattn.flow.Production` has both.

    Reference:
      Boffi & Vanden-Eijnden, arXiv 2309.12991.
    """
    residual = jnp.mean((divergence + advection) ** 2)
    return Penalties(divergence.mean() ** 2, advection.mean() ** 2, residual)


def _masked(terms: Array, part: ArrayLike | None) -> Array:
    return terms if part is None else jnp.where(jnp.asarray(part), terms, 0.0)
