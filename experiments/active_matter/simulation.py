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
    dt: float | None = None,
) -> Float[Array, "samples 2 particles dimensions"]:
    """Moves each sample on by a time, with noise of its own.

    Args:
      system: The system.
      z: States.
      key: Random key.
      time: How far.
      dt: Longest time step; the system's by default.
    """
    steps, dt = time_steps(time, system.dt if dt is None else dt)
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
    """Draws independent states, by a burn-in from the system's start.

    Most of the burn-in takes longer steps; the last ones are the system's own, so that stiff
    directions have the law that these give.
    """
    start, burn, end = jax.random.split(key, 3)
    z = jax.vmap(system.start)(jax.random.split(start, samples))
    if not system.burn_in:
        return z
    z = move(system, z, burn, system.burn_in, max(system.dt, 0.01))
    return move(system, z, end, 1.0)
