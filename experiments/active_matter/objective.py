"""The loss of a batch: one of the objectives, and the stationarity penalties."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
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
    diffusion = system.process.diffusion
    return lambda z: -diffusion * correction(z)


def make_loss(config: TrainConfig, system: System) -> Callable[..., tuple[Array, dict[str, Array]]]:
    """Returns (correction, batch, key) -> (loss per component of z, its parts).

    The loss of all score objectives is that of the score, E[|s|^2 + 2 div s] / (2 N d), with its
    minimum -E|s|^2 / (2 N d); that of velocity matching is minus the bound of the entropy
    production per degree of freedom.
    """
    terms = {
        "implicit": _implicit,
        "hutchinson": _implicit,
        "denoising": _denoising,
        "one-step": _one_step,
        "velocity": _velocity,
    }[config.objective]

    def loss(correction: Correction, z: Float[Array, "batch ..."], key: Array):
        keys = jax.random.split(key, len(z))
        found = jax.vmap(lambda z, key: terms(config, system, correction, z, key))(z, keys)
        value = found.mean()
        parts = {"objective": value}
        if config.penalty.any:
            more = _penalties(config, system, correction, z, key)
            parts |= more
            value = value + sum(more.values())
        return value, parts

    return loss


def _implicit(
    config: TrainConfig, system: System, correction: Correction, z: Array, key: Array
) -> Array:
    """`egattn.flow.implicit_score_matching` of the score, whose known part needs no estimate.

    The divergence of b / D is large and in closed form; only the network's is differentiated.
    """
    value, change = _differentiated(config, correction, z, key)
    process = system.process
    known = system.drift_divergence(z) / process.diffusion[..., 0]
    score = process.drift(z) / process.diffusion + value
    return (jnp.sum(score**2 + 2 * change) + 2 * known.sum()) / z.size


def _differentiated(config: TrainConfig, field: Correction, z: Array, key: Array):
    method = "hutchinson" if config.objective == "hutchinson" else "forward"
    return divergence_terms(field, z, method=method, key=key)


def _denoising(
    config: TrainConfig, system: System, correction: Correction, z: Array, key: Array
) -> Array:
    return denoising(
        score_of(system.process, velocity_of(system, correction)), z, key, sigma=config.sigma
    ).mean()


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
        diffusion=process.diffusion,
        duration=config.duration,
        period=process.period,
    )
    return terms.sum() / system.size


def _penalties(
    config: TrainConfig, system: System, correction: Correction, z: Array, key: Array
) -> dict[str, Any]:
    """Per component of z, weighted."""
    velocity = velocity_of(system, correction)
    score = score_of(system.process, velocity)

    def both(z, key):
        v, change = _differentiated(config, velocity, z, key)
        return change.sum(), jnp.sum(v * score(z))

    divergence, advection = jax.vmap(both)(z, jax.random.split(key, len(z)))
    weights, size = config.penalty, int(np.prod(z.shape[1:]))
    found = penalties(divergence, advection)
    return {
        name: getattr(weights, name) * getattr(found, name) / size
        for name in found._fields
        if getattr(weights, name)
    }
