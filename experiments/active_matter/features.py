"""What a network is told of a particle beside its own state: its neighbours, and where flows lead.

The velocity of the probability flow depends on how the cluster responds over times up to 1 / gamma,
not on the forces of the moment. Flows without noise, x' = f(x), tell it: how far a particle goes in
a time t, q_t = x(t) - x(0), and J_t^T g with J_t the derivative of x(t) by x(0), by one backward
pass. All features are continuous with their derivatives: implicit score matching needs that.
"""

import functools
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from experiments.active_matter.forces import REACH, fade, pairs, repulsion
from experiments.active_matter.systems import RATE, STIFFNESS, STRENGTH, TRAP, System

Force = Callable[[Array], Array]

# Euler steps up to each of the times 0.1, 0.3, 1 and 3, and their length: short where the hard
# contacts relax.
_LEGS = ((1, 0.1), (2, 0.1), (6, 0.7 / 6), (16, 0.125))
# Radii of the neighbours' shells.
_SHELLS = (2.0, 2.5, 3.0, 3.5)


# Strength, stiffness, and where they fade: the cluster's own, which never does, and softer ones.
_PUSHES = (
    (STRENGTH, STIFFNESS, 1e3, 2e3),
    (2.5, 3.0, 3.0, REACH),
    (1.0, 3.0, 3.0, REACH),
)


class Features(NamedTuple):
    """Of all particles."""

    vectors: Float[Array, "particles vectors dimensions"]
    """They turn with the system; a network adds them up."""
    scalars: Float[Array, "particles scalars"]
    """They do not turn."""


def local_features(system: System, z: Float[Array, "2 particles dimensions"]) -> Features:
    """A particle's place, propulsion and force, and sums over neighbours that fade out smoothly."""
    x, g = z
    place = x if system.exact is None else x - jnp.asarray(system.exact.center, x.dtype)
    own = [place, g, system.force(x)]
    if system.particles == 1 or system.exact is not None:
        return Features(jnp.stack(own, 1), jnp.zeros((system.particles, 0), z.dtype))
    delta, distance, others = pairs(x, system.period)
    shells = jnp.stack([jnp.exp(-(((distance - r) / 0.4) ** 2)) for r in _SHELLS])
    weights = shells * fade(distance, 0.0, REACH) * others
    places = jnp.einsum("sij,dij->sid", weights, delta)
    propulsions = jnp.einsum("sij,jd->sid", weights, g)
    vectors = jnp.concatenate([jnp.stack(own), places, propulsions])
    return Features(vectors.swapaxes(0, 1), weights.sum(-1).T)


def flow_features(
    system: System, z: Float[Array, "2 particles dimensions"]
) -> Float[Array, "particles vectors dimensions"]:
    """q_t and J_t^T g along each of the system's flows, and q_t of the flows that +-g drives."""
    x, g = z

    def driven(sign):
        return jnp.stack(_displacements(functools.partial(_driven, system, sign * g), x))

    found = [responses(system, x, g), jax.vmap(driven)(jnp.array([1.0, -1.0], x.dtype))]
    return jnp.concatenate([f.reshape(-1, *x.shape) for f in found]).swapaxes(0, 1)


def responses(system: System, x: Array, g: Array) -> Float[Array, "flows vectors ..."]:
    """Along the system's own flow; for a cluster also along softer ones, which see further."""
    if system.exact is not None:
        return _responses(system.force, x, g)[None]

    def along(push):
        strength, stiffness, start, end = push
        force = functools.partial(
            repulsion,
            strength=strength,
            stiffness=stiffness,
            period=system.period,
            fading=(start, end),
        )
        return _responses(lambda x: force(x) - TRAP * x, x, g)

    return jax.vmap(along)(np.asarray(_PUSHES, x.dtype))


def _driven(system: System, g: Array, x: Array, t: Array) -> Array:
    return system.force(x) + system.config.speed * jnp.exp(-RATE * t) * g


def _displacements(force: Callable, x: Array) -> list[Array]:
    """q_t of a flow at the end of each leg."""
    found, place, t = [], x, 0.0
    for count, length in _LEGS:
        place = _carried(force, place, t, count, length)
        t += count * length
        found.append(place - x)
    return found


def _responses(force: Force, x: Array, g: Array) -> Float[Array, "vectors particles dimensions"]:
    """q_t and J_t^T g of one flow at the end of each leg, in turns."""
    places, pulls = [x], []
    for count, length in _LEGS:
        leg = functools.partial(_carried, lambda x, t: force(x), t=0.0, count=count, length=length)
        place, pull = jax.vjp(leg, places[-1])
        places.append(place)
        pulls.append(pull)
    # Backward once: each leg takes along what begins at its end.
    back = jnp.zeros((0, *g.shape), g.dtype)
    for pull in reversed(pulls):
        (back,) = jax.vmap(pull)(jnp.concatenate([g[None], back]))
    return jnp.stack([jnp.stack(places[1:]) - x, back], 1).reshape(-1, *x.shape)


def _carried(force: Callable, x: Array, t: float, count: int, length: float) -> Array:
    """Where a flow without noise leads to from a time t on, by Euler steps."""

    def step(x, index):
        return x + length * force(x, t + index * length), None

    return jax.lax.scan(step, x, jnp.arange(count))[0]
