"""Cross-entropy optimisation: draw, keep the best, fit the family to them, again."""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.sharding import Mesh
from jaxtyping import Array, Float

from egattn.cem.families import Family
from egattn.cem.sharding import check_samples, split_samples


class Minimum(NamedTuple):
    """What a search ended with."""

    x: Float[Array, " dims"]
    """The best sample of all rounds."""
    value: Float[Array, ""]
    """The function there."""
    elite: Float[Array, "elites dims"]
    """The best samples of the last round, best first."""
    elite_values: Float[Array, " elites"]
    """The function there."""
    levels: Float[Array, " rounds"]
    """The worst value of each round's elite."""
    family: Any
    """The member fitted last."""
    samples: Float[Array, "rounds samples dims"] | None
    """All samples, if asked for."""


@functools.partial(
    jax.jit,
    static_argnames=("f", "rounds", "samples", "elites", "smoothing", "mesh", "keep_samples"),
)
def minimize(
    f: Callable[..., Float[Array, " samples"]],
    start: Family,
    key: Array,
    args: tuple[Any, ...] = (),
    *,
    rounds: int,
    samples: int,
    elites: int,
    smoothing: float = 0.8,
    mesh: Mesh | None = None,
    keep_samples: bool = False,
) -> Minimum:
    """Searches a minimum of a function that is computed for many points at once.

    Compiled once per `f` and sizes; `jax.vmap` over start, key and args searches many at once. It
    finds one minimum, not which others there are, and whether it is one is for the caller to check.

    Args:
      f: Takes points [N, d] and `args`, gives values [N]; NaN counts as the worst.
      start: Member of the family that the first samples come from.
      key: PRNG key.
      args: More arguments of `f`: trees of arrays.
      rounds: How often to draw.
      samples: N, per round; 5 to 10 per parameter of the family at least.
      elites: How many of them to fit; a tenth is usual, 1 collapses at once.
      smoothing: How far to move towards the fit, in (0, 1].
      mesh: Devices to split the samples over, all its axes; default: not split.
      keep_samples: Whether to return every sample.

    Raises:
      ValueError: If the numbers make no sense, or the mesh does not divide the samples.

    Reference:
      De Boer, Kroese, Mannor, Rubinstein, Annals of Operations Research 134 (2005), section 4.
    """
    _check(rounds, samples, elites, smoothing, mesh)

    def one_round(state: tuple[Family, Array, Array], key: Array):
        family, x, value = state
        draw, fit = jax.random.split(key)
        points = split_samples(family.sample(draw, samples), mesh)
        values = f(points, *args)
        values = jnp.where(jnp.isnan(values), jnp.inf, values)
        negative, index = jax.lax.top_k(-values, elites)
        elite = points[index]
        better = -negative[0] < value
        best = jnp.where(better, elite[0], x), jnp.where(better, -negative[0], value)
        family = family.fitted(fit, elite, jnp.zeros_like(negative), smoothing)
        return (family, *best), (elite, -negative, points if keep_samples else None)

    keys = jax.random.split(key, rounds)
    shape = jax.eval_shape(lambda: f(start.sample(keys[0], samples), *args))
    # Any sample beats infinity, so that this x is returned only if no value is a number.
    nowhere = jnp.zeros_like(start.sample(keys[0], 1)[0])
    state = start, nowhere, jnp.array(jnp.inf, shape.dtype)
    (family, x, value), (elite, values, points) = jax.lax.scan(one_round, state, keys)
    return Minimum(x, value, elite[-1], values[-1], values[:, -1], family, points)


def _check(rounds: int, samples: int, elites: int, smoothing: float, mesh: Mesh | None) -> None:
    if rounds < 1 or not 1 <= elites <= samples or not 0 < smoothing <= 1:
        raise ValueError(
            "expected rounds >= 1, 1 <= elites <= samples and smoothing within (0, 1], got "
            f"{rounds}, {elites} of {samples} and {smoothing}"
        )
    check_samples(samples, mesh)
