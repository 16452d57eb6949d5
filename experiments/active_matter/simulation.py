"""Many independent trajectories at once."""

import functools
import math

import jax
from jaxtyping import Array, Float

from egattn.flow import simulate
from experiments.active_matter.systems import System


def move(
    system: System,
    z: Float[Array, "samples 2 particles dimensions"],
    key: Array,
    time: float,
) -> Float[Array, "samples 2 particles dimensions"]:
    """Moves each sample on by a time, with noise of its own.

    Args:
      system: The system.
      z: States.
      key: Random key.
      time: How far.
    """
    steps, dt = time_steps(time, system.dt)
    one = functools.partial(simulate, system.process, step=dt, steps=steps, every=steps)
    return jax.vmap(lambda z, key: one(z, key)[0])(z, jax.random.split(key, len(z)))


def time_steps(time: float, longest: float) -> tuple[int, float]:
    """Number and length of equal time steps that make up a time."""
    # Rounding must not make one more of them.
    steps = max(math.ceil(time / longest - 1e-6), 1)
    return steps, time / steps


def stationary(
    system: System, key: Array, samples: int
) -> Float[Array, "samples 2 particles dimensions"]:
    """Draws independent states, by a burn-in from the system's start."""
    start, burn = jax.random.split(key)
    z = jax.vmap(system.start)(jax.random.split(start, samples))
    return move(system, z, burn, system.burn_in) if system.burn_in else z
