"""All zeros of a function in a box: cross-entropy search per window, then Muller's method.

How many zeros there are is known before, from the argument principle; the search goes on until it
has so many. The same with one round instead of four is the ablation: random points, no fit.

Reference:
  De Boer, Kroese, Mannor, Rubinstein (2005) for the search; what it is applied to, and in which
  steps, is a construction after arXiv 2409.19790.
"""

import dataclasses
import functools
import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from egattn import cem
from experiments.zeta.box import Box
from experiments.zeta.evaluator import Evaluator, check_float64, modulus
from experiments.zeta.functions import DirichletSeries
from experiments.zeta.muller import muller

SAMPLES, ELITES, ROUNDS = 20, 4, 4
"""Per window and round."""
_HEIGHT, _OVERLAP = 0.65, 0.1
# With its overlaps, a window of this height comes to 3 / 4 of the reach on either side.
_REACHED = 1.25
_ACCEPT, _SAME = 1e-11, 1e-6
_PASSES = 10


@dataclasses.dataclass
class Found:
    """Zeros, and what they cost."""

    zeros: Float[np.ndarray, "zeros 2"]
    """sigma and t, by rising t."""
    evaluations: int
    """Of the function, those of the polish included, those of the count not."""
    bisections: int = 0
    """How often the box had to be cut because a part of it did not give all its zeros."""


class Windows(NamedTuple):
    """Boxes of the search with one anchor each, as offsets from it."""

    anchor: Float[np.ndarray, " windows"]
    low: Float[np.ndarray, "windows 2"]
    high: Float[np.ndarray, "windows 2"]


def windows(function: DirichletSeries, box: Box, reach: float = math.inf) -> Windows:
    """Cuts a box into windows of 0.65 mean distances of zeros, a tenth overlapping.

    Args:
      function: Whose zeros.
      box: What to cut.
      reach: How far from its anchor, in t, the evaluator can be used; what a polish may leave a
        window by is kept free.
    """
    starts = [box.t_low]
    while starts[-1] < box.t_high:
        height = min(_HEIGHT * function.spacing(starts[-1]), _REACHED * reach)
        starts.append(starts[-1] + height)
    starts[-1] = box.t_high
    return _windows(box, np.array(starts), _OVERLAP * np.diff(starts))


def even_windows(box: Box, height: float, overlap: float = _OVERLAP) -> Windows:
    """Windows of equal height, each with so much more on both sides."""
    edges = np.linspace(box.t_low, box.t_high, round((box.t_high - box.t_low) / height) + 1)
    return _windows(box, edges, np.full(len(edges) - 1, overlap))


def _windows(box: Box, edges: np.ndarray, margin: np.ndarray) -> Windows:
    bottom = np.maximum(edges[:-1] - margin, box.t_low)
    top = np.minimum(edges[1:] + margin, box.t_high)
    anchor = (bottom + top) / 2
    u = np.broadcast_to(np.array([box.sigma_low, box.sigma_high]) - 0.5, (len(anchor), 2))
    return Windows(
        anchor,
        np.stack([u[:, 0], bottom - anchor], -1),
        np.stack([u[:, 1], top - anchor], -1),
    )


def find(
    function: DirichletSeries,
    evaluator: Evaluator,
    box: Box,
    number: int,
    count: Callable[[Box], int],
    seed: int,
    rounds: int = ROUNDS,
) -> Found:
    """Finds all zeros in a box.

    Args:
      function: Which; decides the windows.
      evaluator: How it is computed, in float64.
      box: Where.
      number: How many zeros the box has.
      count: Counts the zeros of a smaller box, should ten passes not give all.
      seed: Decides every draw.
      rounds: Of the cross-entropy search; 1 is the ablation.

    Raises:
      ValueError: If the evaluator is not to be trusted in the box, or a part of the box no larger
        than what counts as one zero still does not give its zeros.
    """
    check_float64()
    evaluator.trust.check(box)
    parts = windows(function, box, evaluator.trust.reach)
    tables = evaluator.tables(parts.anchor)
    found = Found(np.zeros((0, 2)), 0)
    for index in range(_PASSES if number else 0):
        key = jax.random.fold_in(jax.random.key(seed), index)
        known = _known(found.zeros, number, parts.anchor)
        roots, sizes, evaluations = _pass(
            *(evaluator, tables, known, jnp.asarray(parts.low), jnp.asarray(parts.high), key),
            rounds=rounds,
        )
        found.evaluations += int(evaluations.sum()) + len(parts.anchor) * rounds * SAMPLES
        zeros = np.asarray(roots) + np.stack([np.full_like(parts.anchor, 0.5), parts.anchor], -1)
        _add(found, zeros[np.asarray(sizes) <= _ACCEPT], box)
        if len(found.zeros) >= number:
            break
    if len(found.zeros) > number:
        raise ValueError(f"found {len(found.zeros)} zeros where {box} has {number}")
    if len(found.zeros) < number:
        _bisect(function, evaluator, box, count, seed, rounds, found)
    return found


def _bisect(
    function: DirichletSeries,
    evaluator: Evaluator,
    box: Box,
    count: Callable[[Box], int],
    seed: int,
    rounds: int,
    found: Found,
) -> None:
    """Searches both halves of a box anew; what they find is all that the box has."""
    if box.t_high - box.t_low < _SAME:
        raise ValueError(f"expected simple zeros further apart than {_SAME:g}, got {box}")
    parts = [
        find(function, evaluator, half, count(half), count, seed + 1, rounds)
        for half in box.halves()
    ]
    found.zeros = np.concatenate([part.zeros for part in parts])
    found.zeros = _in_order(found.zeros)
    found.evaluations += sum(part.evaluations for part in parts)
    found.bisections += 1 + sum(part.bisections for part in parts)


def _add(found: Found, zeros: np.ndarray, box: Box) -> None:
    """Adds zeros inside the box that are new."""
    for zero in zeros:
        new = not len(found.zeros) or np.hypot(*(found.zeros - zero).T).min() > _SAME
        if new and box.contains(*zero):
            found.zeros = np.concatenate([found.zeros, zero[None]])
    found.zeros = _in_order(found.zeros)


def _in_order(zeros: np.ndarray) -> np.ndarray:
    """By rising t, and from left to right where only rounding tells heights apart."""
    return zeros[np.lexsort((zeros[:, 0], zeros[:, 1].round(9)))]


def _known(zeros: np.ndarray, number: int, anchor: np.ndarray) -> Float[Array, "windows zeros 2"]:
    """Zeros as offsets from each anchor, filled up with NaN to a length that is often the same."""
    length = 1 << (max(number, 8) - 1).bit_length()
    known = np.full((len(anchor), length, 2), np.nan)
    known[:, : len(zeros), 0] = zeros[:, 0] - 0.5
    known[:, : len(zeros), 1] = zeros[:, 1] - anchor[:, None]
    return jnp.asarray(known)


@functools.partial(jax.jit, static_argnames=("evaluator", "rounds"))
def _pass(
    evaluator: Evaluator,
    tables: NamedTuple,
    known: Float[Array, "windows zeros 2"],
    low: Float[Array, "windows 2"],
    high: Float[Array, "windows 2"],
    key: Array,
    *,
    rounds: int,
) -> tuple[Float[Array, "windows 2"], Float[Array, " windows"], Int[Array, " windows"]]:
    """One search per window: where it ended, the function's modulus there, steps of the polish."""

    def one(table: NamedTuple, known: Array, low: Array, high: Array, key: Array):
        start = cem.TruncatedNormal.over(low, high)
        args = table, known
        best = cem.minimize(
            *(functools.partial(deflated_modulus, evaluator), start, key, args),
            rounds=rounds,
            samples=SAMPLES,
            elites=ELITES,
        )
        return _polish(evaluator, table, known, best.elite[2::-1])

    # A window's draws do not depend on how many there are.
    keys = jax.vmap(functools.partial(jax.random.fold_in, key))(jnp.arange(len(low)))
    return jax.vmap(one)(tables, known, low, high, keys)


def _polish(evaluator: Evaluator, table: NamedTuple, known: Array, points: Float[Array, "3 2"]):
    def f(x: Array) -> Array:
        offset = jnp.stack([x.real, x.imag], -1)
        re, im = evaluator.values(table, offset)
        return jax.lax.complex(re, im) / _product(known, offset)

    def scalar(x: Array) -> Array:
        return f(x[None])[0]

    x = jax.lax.complex(points[:, 0], points[:, 1])
    root = muller(scalar, x, f(x))
    end = jnp.stack([root.x.real, root.x.imag])
    raw = jnp.abs(root.value * _product(known, end[None])[0])
    return end, jnp.where(jnp.isnan(raw), jnp.inf, raw), root.evaluations


def deflated_modulus(
    evaluator: Evaluator, offsets: Float[Array, "points 2"], table: Any, known: Any
) -> Float[Array, " points"]:
    """|f(s)| / prod |s - rho| over known zeros rho, given as offsets; rows of NaN are none."""
    return modulus(evaluator.values(table, offsets)) / jnp.abs(_product(known, offsets))


def _product(known: Array, offsets: Array) -> Array:
    away = offsets[:, None] - known
    factor = jax.lax.complex(away[..., 0], away[..., 1])
    return jnp.where(jnp.isnan(known[:, 0]), 1, factor).prod(-1)


def cross_entropy(
    evaluator: Evaluator,
    parts: Windows,
    seed: int,
    *,
    rounds: int,
    samples: int = 200,
    elites: int = 20,
    floor: float = 1e-15,
    keep_samples: bool = False,
) -> cem.Minimum:
    """One cross-entropy search per window without a polish, in the dtype of the evaluator.

    Args:
      evaluator: How the function is computed.
      parts: Where.
      seed: Decides every draw.
      rounds: 40 in float64, 25 in float32 for all digits.
      samples: Per window and round.
      elites: How many of them to fit.
      floor: Least standard deviation.
      keep_samples: Whether to return them all.
    """
    tables = evaluator.tables(parts.anchor)
    dtype = jax.tree.leaves(tables)[0].dtype
    low, high = jnp.asarray(parts.low, dtype), jnp.asarray(parts.high, dtype)
    sizes = {"rounds": rounds, "samples": samples, "elites": elites, "keep_samples": keep_samples}
    # A zero off every window: nothing is deflated.
    known = jnp.full((len(low), 1, 2), jnp.nan, dtype)
    return _minima(evaluator, tables, known, low, high, jax.random.key(seed), floor, **sizes)


@functools.partial(
    jax.jit, static_argnames=("evaluator", "rounds", "samples", "elites", "keep_samples")
)
def _minima(
    evaluator: Evaluator,
    tables: NamedTuple,
    known: Array,
    low: Array,
    high: Array,
    key: Array,
    floor: float,
    **sizes: int,
) -> cem.Minimum:
    f = functools.partial(deflated_modulus, evaluator)

    def one(table: NamedTuple, known: Array, low: Array, high: Array, key: Array):
        start = cem.TruncatedNormal.over(low, high, jnp.asarray(floor, low.dtype))
        return cem.minimize(f, start, key, (table, known), **sizes)

    keys = jax.vmap(functools.partial(jax.random.fold_in, key))(jnp.arange(len(low)))
    return jax.vmap(one)(tables, known, low, high, keys)
