"""What a network is told of a particle beside its own state: its neighbours, and where flows lead.

The velocity of the probability flow depends on how the cluster responds over times up to 1 / gamma,
not on the forces of the moment. Flows without noise, x' = f(x), tell it: how far a particle goes in
a time t, q_t = x(t) - x(0), and J_t^T g with J_t the derivative of x(t) by x(0), by one backward
pass. All features are continuous with their derivatives: implicit score matching needs that.
"""

import functools
from collections.abc import Callable, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from experiments.active_matter.forces import pairs, softplus
from experiments.active_matter.systems import RATE, TRAP, System

Force = Callable[[Array], Array]

# Euler steps up to each of the times 0.1, 0.3, 1 and 3, and their length: short where the hard
# contacts relax.
_LEGS = ((1, 0.1), (2, 0.1), (6, 0.7 / 6), (16, 0.125))
# Radii of the neighbours' shells, and where they end.
_SHELLS, _REACH = (2.0, 2.5, 3.0, 3.5), 4.0


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
    weights = shells * fade(distance, 0.0, _REACH) * others
    places = jnp.einsum("sij,dij->sid", weights, delta)
    propulsions = jnp.einsum("sij,jd->sid", weights, g)
    vectors = jnp.concatenate([jnp.stack(own), places, propulsions])
    return Features(vectors.swapaxes(0, 1), weights.sum(-1).T)


def fade(r: Float[Array, "..."], start: float, end: float) -> Float[Array, "..."]:
    """1 up to `start`, 0 from `end` on, with two continuous derivatives."""
    t = jnp.clip((r - start) / (end - start), 0, 1)
    return 1 - t**3 * (10 - 15 * t + 6 * t**2)


def flow_features(
    system: System, z: Float[Array, "2 particles dimensions"]
) -> Float[Array, "particles vectors dimensions"]:
    """q_t and J_t^T g along each of the system's flows, and q_t of the flow that g drives."""
    x, g = z
    found = []
    for force in flows(system):
        found += _responses(force, x, g)
    for sign in (1, -1):
        place, t = x, 0.0
        for count, length in _LEGS:
            place = _carried(functools.partial(_driven, system, sign * g), place, t, count, length)
            t += count * length
            found.append(place - x)
    return jnp.stack(found, 1)


def flows(system: System) -> Sequence[Force]:
    """The system's own force; for a cluster also softer ones, which see further."""
    if system.exact is not None:
        return (system.force,)
    soft = [functools.partial(_soft, system.period, strength) for strength in (2.5, 1.0)]
    return (system.force, *soft)


def _soft(period: float | None, strength: float, x: Array) -> Array:
    """Repulsion with beta = 3, which ends smoothly between 3 and 4, and the trap."""
    delta, distance, others = pairs(x, period)
    push = softplus(3 * (2 - distance)) / (3 * distance)
    push = push * fade(distance, 3.0, 4.0) * others
    return strength * jnp.sum(push * delta, 2).T - TRAP * x


def _driven(system: System, g: Array, x: Array, t: Array) -> Array:
    return system.force(x) + system.config.speed * jnp.exp(-RATE * t) * g


def _responses(force: Force, x: Array, g: Array) -> list[Array]:
    """q_t and J_t^T g of one flow at the end of each leg, which is integrated once."""
    found, place, pulls = [], x, []
    for count, length in _LEGS:
        leg = functools.partial(_carried, lambda x, t: force(x), t=0.0, count=count, length=length)
        place, pull = jax.vjp(leg, place)
        pulls.append(pull)
        response = g
        for pull in reversed(pulls):
            (response,) = pull(response)
        found += [place - x, response]
    return found


def _carried(force: Callable, x: Array, t: float, count: int, length: float) -> Array:
    """Where a flow without noise leads to from a time t on, by Euler steps."""

    def step(x, index):
        return x + length * force(x, t + index * length), None

    return jax.lax.scan(step, x, jnp.arange(count))[0]
