"""The loss of a batch: one of the objectives, and the stationarity penalties."""

import dataclasses
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from egattn.flow import (
    Field,
    denoising,
    divergence_terms,
    ends,
    one_step_denoising,
    penalties,
    score_of,
    velocity_matching,
)
from experiments.active_matter.config import TrainConfig
from experiments.active_matter.systems import System

Correction = Callable[[Array], Array]
"""A network's values for one state; s = b / D + network, so v = -D network."""


def velocity_of(system: System, correction: Correction) -> Field:
    """v = -D network."""
    diffusion = system.diffusion
    return lambda z: jnp.multiply(-diffusion, correction(z))


def make_loss(config: TrainConfig, system: System) -> Callable[..., tuple[Array, dict[str, Array]]]:
    """Returns (correction, batch, weights, key) -> (loss per component of z, its parts).

    The loss of all score objectives is that of the score, E[|s|^2 + 2 div s] / (2 N d), with its
    minimum -E|s|^2 / (2 N d); that of velocity matching is minus the bound of the entropy
    production per degree of freedom.
    """
    others = {"denoising": _denoising, "one-step": _one_step, "velocity": _velocity}
    terms = others.get(config.objective)

    def loss(correction: Correction, z: Float[Array, "batch ..."], weights: Array, key: Array):
        def one(z, key):
            if terms is None:
                change = _change(config, system, correction, z, key)
                return change.score_matching, change
            change = _change(config, system, correction, z, key) if config.penalty.any else None
            return terms(config, system, correction, z, key), change

        found, change = jax.vmap(one)(z, jax.random.split(key, len(z)))
        parts = {"objective": jnp.sum(weights * found)}
        if change and config.penalty.any:
            parts |= _penalties(config, change, z[0].size)
        return sum(parts.values(), jnp.zeros(())), parts

    return loss


class Change(NamedTuple):
    """What one differentiation of the network gives, of one state."""

    score_matching: Array
    """(|s|^2 + 2 div s) / (2 N d)."""
    divergence: Array
    """div v."""
    advection: Array
    """v.s."""


def _change(
    config: TrainConfig, system: System, correction: Correction, z: Array, key: Array
) -> Change:
    """`egattn.flow.implicit_score_matching` of the score, whose known part needs no estimate.

    The divergence of b / D is large and in closed form; only the network's is differentiated.
    """
    method = "hutchinson" if config.objective == "hutchinson" else "forward"
    value, terms = divergence_terms(correction, z, method=method, key=key)
    known = jnp.sum(system.drift_divergence(z) / system.diffusion[..., 0])
    score = system.drift(z) / system.diffusion + value
    return Change(
        (jnp.sum(score**2 + 2 * terms) + 2 * known) / z.size,
        -jnp.sum(system.diffusion * terms),
        -jnp.sum(system.diffusion * value * score),
    )


def _denoising(
    config: TrainConfig, system: System, correction: Correction, z: Array, key: Array
) -> Array:
    score = score_of(system.process, velocity_of(system, correction))
    return denoising(score, z, key, sigma=config.sigma).mean()


def _one_step(
    config: TrainConfig, system: System, correction: Correction, z: Array, key: Array
) -> Array:
    score = score_of(system.process, velocity_of(system, correction))
    return one_step_denoising(score, system.process, z, key, step=system.dt).mean()


def _velocity(
    config: TrainConfig, system: System, correction: Correction, z: Array, key: Array
) -> Array:
    process = system.process
    ahead = ends(process, z, key, duration=config.duration, substeps=config.substeps)
    terms = velocity_matching(
        velocity_of(system, correction),
        z,
        ahead,
        diffusion=system.diffusion,
        duration=config.duration,
        period=process.period,
    )
    return terms.sum() / system.size


def _penalties(config: TrainConfig, change: Change, size: int) -> dict[str, Array]:
    """Per component of z, weighted."""
    found = penalties(change.divergence, change.advection)
    weights = dataclasses.asdict(config.penalty)
    return {name: w * getattr(found, name) / size for name, w in weights.items() if w}
