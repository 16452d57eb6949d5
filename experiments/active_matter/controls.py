"""What the averages of a system are controlled by: functions whose mean change is 0."""

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from egattn.flow import generator
from experiments.active_matter.systems import RING, System, SystemConfig

# Samples for each control, below which their coefficients would be guesses.
_SAMPLES_EACH = 20
FINE, COARSE = (16, 4), (8, 3)
"""For many samples, whose waves are as short as thrice what the force changes within; and for those
of a training step."""
# Second derivatives of pair forces in all directions, for this many snapshots at once.
_PIECE = 16


def has_controls(config: SystemConfig) -> bool:
    """Whether a system has any: products of places are no functions of a periodic box."""
    return config.name != "cluster"


def enough(system: System, samples: int) -> bool:
    """Whether a system has controls, and there are enough independent samples for them."""
    if not has_controls(system.config):
        return False
    z = jax.ShapeDtypeStruct((2, system.particles, system.dimensions), np.float32)
    shape = jax.eval_shape(functools.partial(control, system, fineness=FINE), z).shape
    return samples >= _SAMPLES_EACH * shape[0]


def controls(
    system: System,
    z: Float[np.ndarray, "snapshots 2 particles dimensions"],
    fineness: tuple[int, int] = FINE,
) -> Float[np.ndarray, "snapshots controls"]:
    """`egattn.flow.generator` of a system's observables.

    Args:
      system: The system.
      z: Its states.
      fineness: Of the ring's observables: how many harmonics, and the largest degree in g.
    """
    size = _PIECE if system.particles > 1 else 4096
    one = functools.partial(control, system, fineness=fineness)
    found = jax.jit(functools.partial(jax.lax.map, one, batch_size=size))(jnp.asarray(z))
    return np.asarray(found, np.float64)


def control(
    system: System, z: Float[Array, "2 particles dimensions"], fineness: tuple[int, int]
) -> Float[Array, " controls"]:
    """As `controls`, of one state."""
    if system.config.name == "ring":
        observables = functools.partial(_ring, *fineness)
    else:
        observables = functools.partial(_products, system)
    return generator(system.process, observables, z)


def _products(system: System, z: Array) -> Float[Array, " observables"]:
    """Of positions from the centre, forces and propulsions: all six, per particle."""
    x, g = z
    center = 0.0 if system.exact is None else jnp.asarray(system.exact.center, x.dtype)
    vectors = jnp.stack([x - center, system.force(x), g]).reshape(3, -1)
    return (vectors @ vectors.T)[jnp.triu_indices(3)] / system.particles


def _ring(harmonics: int, degree: int, z: Array) -> Float[Array, " observables"]:
    """Harmonics of the position times Hermite polynomials of the propulsion.

    Those that exchanging the particles leaves as they are, like all that is averaged.
    """
    x, g = z.reshape(2)
    angles = 2 * math.pi * x / RING * jnp.arange(1, harmonics + 1)
    even, odd = jnp.concatenate([jnp.ones(1), jnp.cos(angles)]), jnp.sin(angles)
    hermite = [jnp.ones(()), g]
    for n in range(1, degree):
        hermite.append(g * hermite[-1] - n * hermite[-2])
    products = [jnp.outer(jnp.stack(hermite[k::2]), waves) for k, waves in ((0, even), (1, odd))]
    # The first is a constant.
    return jnp.concatenate([p.ravel() for p in products])[1:]
