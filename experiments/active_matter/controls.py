"""What the averages of a system are controlled by: functions whose mean change is 0."""

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from egattn.flow import generator
from experiments.active_matter.systems import RING, System

# Samples for each control, below which their coefficients would be guesses.
SAMPLES = 20
# Of the ring: the force changes within 0.3, a wave's half length.
_HARMONICS, _DEGREE = 16, 4
# Second derivatives of pair forces in all directions, for this many snapshots at once.
_PIECE = 16


def controls(
    system: System, z: Float[np.ndarray, "snapshots 2 particles dimensions"]
) -> Float[np.ndarray, "snapshots controls"]:
    """`egattn.flow.generator` of a system's observables."""
    observables = _ring if system.config.name == "ring" else functools.partial(_products, system)
    one = functools.partial(generator, system.process, observables)
    size = _PIECE if system.particles > 1 else 4096
    found = jax.jit(functools.partial(jax.lax.map, one, batch_size=size))(jnp.asarray(z))
    return np.asarray(found, np.float64)


def _products(system: System, z: Array) -> Float[Array, " observables"]:
    """Of positions from the centre, forces and propulsions: all six, per particle."""
    x, g = z
    center = 0.0 if system.exact is None else jnp.asarray(system.exact.center, x.dtype)
    vectors = jnp.stack([x - center, system.force(x), g]).reshape(3, -1)
    return (vectors @ vectors.T)[jnp.triu_indices(3)] / system.particles


def _ring(z: Array) -> Float[Array, " observables"]:
    """Harmonics of the position times Hermite polynomials of the propulsion.

    Those that exchanging the particles leaves as they are, like all that is averaged.
    """
    x, g = z.reshape(2)
    angles = 2 * math.pi * x / RING * jnp.arange(1, _HARMONICS + 1)
    even, odd = jnp.concatenate([jnp.ones(1), jnp.cos(angles)]), jnp.sin(angles)
    hermite = [jnp.ones(()), g]
    for degree in range(1, _DEGREE):
        hermite.append(g * hermite[-1] - degree * hermite[-2])
    products = [jnp.outer(jnp.stack(hermite[k::2]), waves) for k, waves in ((0, even), (1, odd))]
    # The first is a constant.
    return jnp.concatenate([p.ravel() for p in products])[1:]
