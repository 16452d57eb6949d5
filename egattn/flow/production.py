"""Entropy production, local and on average, with its lower bound."""

from typing import NamedTuple

import jax.numpy as jnp
from jaxtyping import Array, ArrayLike, Float

from egattn.flow import estimate
from egattn.flow.divergence import Method, divergence_terms
from egattn.flow.estimate import Estimate
from egattn.flow.process import Field, Process, inverse_diffusion


class Production(NamedTuple):
    """Local entropy production of a sample, per time and in units of k_B, component by component.

    Sums over axes give that of a particle, of a kind of variables, or of all. Where D = 0 the
    velocity is b and production is not defined: all terms are 0 there.
    """

    total: Float[Array, "*shape"]
    """v_i^2 / D_i."""
    medium: Float[Array, "*shape"]
    """v_i b_i / D_i: heat over temperature."""
    system: Float[Array, "*shape"]
    """d v_i / d z_i: the sum is the growth of -log rho along the flow, 0 on average."""

    @property
    def advection(self) -> Float[Array, "*shape"]:
        """v_i s_i, which is medium less total."""
        return self.medium - self.total

    @property
    def residual(self) -> Float[Array, "*shape"]:
        """Terms of div v + v.s: for the true v their sum is 0, and so is the mean of each."""
        return self.system + self.advection

    @property
    def bound(self) -> Float[Array, "*shape"]:
        """2 (medium + system) - total: its mean over fresh samples bounds the true mean total.

        For any v that is continuous, E[v_i b_i / D_i + d v_i / d z_i] = E[v_i v*_i / D_i], where v*
        is the true velocity: integrate by parts and put in b - D grad log rho = v*. So the mean is
        E[v*_i^2 / D_i] - E[(v_i - v*_i)^2 / D_i], in each component i. Minus the sum is implicit
        score matching with weights D, plus what no network changes.
        """
        return 2 * (self.medium + self.system) - self.total


def production(
    process: Process,
    velocity: Field,
    z: Float[Array, "*shape"],
    *,
    part: ArrayLike | None = None,
    method: Method = "forward",
    key: Array | None = None,
    probes: int = 1,
) -> Production:
    """Local entropy production at one sample.

    Args:
      process: The process: its drift and diffusion.
      velocity: v, an estimate of the velocity of its probability flow, see `egattn.flow.velocity`.
      z: The sample.
      part: Components that count, see `divergence_terms`; 0 for others.
      method: How to differentiate, see `divergence_terms`.
      key: Random key of "hutchinson".
      probes: Number of probes of "hutchinson".

    Reference:
      Seifert, Phys. Rev. Lett. 95 (2005), 040602; Boffi & Vanden-Eijnden, arXiv 2309.12991.
    """
    v, system = divergence_terms(velocity, z, part=part, method=method, key=key, probes=probes)
    chosen = jnp.asarray(process.diffusion) > 0
    if part is not None:
        chosen = chosen & jnp.asarray(part)
    scaled = jnp.where(chosen, v * inverse_diffusion(process.diffusion), 0.0)
    return Production(scaled * v, scaled * process.drift(z), jnp.where(chosen, system, 0.0))


class Summary(NamedTuple):
    """What to print of an estimate of entropy production, and whether to believe it."""

    total: Estimate
    """Entropy production rate."""
    bound: Estimate
    """What the true rate is at least, on samples not trained on: see `Production.bound`."""
    medium: Estimate
    """The rate again, from the heat."""
    system: Estimate
    """E[div v], 0 in a stationary state."""
    residual: Estimate
    """E[div v + v.s], 0 for the true velocity."""
    residual_deviation: Float[Array, ""]
    """Standard deviation of div v + v.s, 0 for the true velocity."""


def summarise(
    production: Production, *, part: ArrayLike | None = None, blocks: int | None = None
) -> Summary:
    """Means and standard errors of the production of many samples.

    Args:
      production: Production of each sample, along a first axis.
      part: Components to sum over, boolean, broadcastable to a sample; None for all.
      blocks: See `egattn.flow.mean`.
    """

    def summed(terms: Array) -> Array:
        terms = terms if part is None else jnp.where(jnp.asarray(part), terms, 0.0)
        return terms.reshape(len(terms), -1).sum(1)

    names = ("total", "bound", "medium", "system", "residual")
    sums = [summed(getattr(production, name)) for name in names]
    estimates = [estimate.mean(x, blocks=blocks) for x in sums]
    return Summary(**dict(zip(names, estimates, strict=True)), residual_deviation=sums[-1].std())
