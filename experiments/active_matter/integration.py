"""Samples carried by the probability flow."""

import jax
import jax.numpy as jnp
import numpy as np

from egattn.flow import Field, probability_flow
from experiments.active_matter.systems import System


def integrate(
    system: System, velocity: Field, z: np.ndarray, times: np.ndarray, tolerance: float = 1e-5
) -> np.ndarray:
    """Integrates dz/dt = v(z) for several states at once.

    Args:
      system: The system.
      velocity: v of one state.
      z: Where they start, [states, 2, N, d].
      times: When to tell where they are, ascending from 0 or later on.
      tolerance: Relative and absolute tolerance of a step.

    Returns:
      [times, states, 2, N, d], not wrapped.
    """
    process = system.process

    def follow(z):
        return probability_flow(
            jax.vmap(velocity),
            z,
            jnp.asarray(times, z.dtype),
            period=process.period,
            origin=process.origin,
            rtol=tolerance,
            atol=tolerance,
        )

    return np.asarray(jax.jit(follow)(jnp.asarray(z, jnp.float32)), float)
