"""Muller's method: a parabola through three points, in complex numbers, for many starts at once.

Reference:
  D. E. Muller, Mathematical Tables and Other Aids to Computation 10 (1956).
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Complex, Int

_MOST_STEPS = 30
_LONGEST_STEP, _SHORTEST_STEP = 1.0, 1e-8


class Root(NamedTuple):
    """Where the steps ended."""

    x: Complex[Array, ""]
    value: Complex[Array, ""]
    evaluations: Int[Array, ""]
    """Of the function; those of the three starting points are not among them."""


class _State(NamedTuple):
    x: Complex[Array, " 3"]
    value: Complex[Array, " 3"]
    evaluations: Int[Array, ""]
    done: Bool[Array, ""]


def muller(
    f: Callable[[Complex[Array, ""]], Complex[Array, ""]],
    x: Complex[Array, " 3"],
    value: Complex[Array, " 3"],
) -> Root:
    """Follows parabolas until a step is below 1e-8; `jax.vmap` follows many.

    Args:
      f: Analytic function of one complex number; NaN ends the search.
      x: Three distinct starting points, the best one last.
      value: The function there.
    """

    def step(state: _State) -> _State:
        (x0, x1, x2), (f0, f1, f2) = state.x, state.value
        d1, d2 = (f1 - f0) / (x1 - x0), (f2 - f1) / (x2 - x1)
        a = (d2 - d1) / (x2 - x0)
        b = a * (x2 - x1) + d2
        root = jnp.sqrt(b * b - 4 * a * f2)
        divisor = jnp.where(jnp.abs(b + root) > jnp.abs(b - root), b + root, b - root)
        move = -2 * f2 / divisor
        move *= jnp.minimum(1, _LONGEST_STEP / jnp.abs(move))
        new = x2 + move
        value = f(new)
        # Not a number, it is not shorter either.
        done = ~(jnp.abs(move) >= _SHORTEST_STEP) | ~jnp.isfinite(jnp.abs(value))
        return _State(
            jnp.stack([x1, x2, new]), jnp.stack([f1, f2, value]), state.evaluations + 1, done
        )

    start = _State(x, value, jnp.array(0), jnp.array(False))
    end = jax.lax.while_loop(
        lambda state: ~state.done & (state.evaluations < _MOST_STEPS), step, start
    )
    return Root(end.x[-1], end.value[-1], end.evaluations)
