"""Probability of a rare event by importance sampling from a family that cross-entropy fits."""

import dataclasses
import functools
import math
from collections.abc import Callable
from typing import Any, Generic, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from jax.scipy.special import logsumexp
from jax.sharding import Mesh
from jaxtyping import Array, Float

from egattn.cem.families import Family, Uniform
from egattn.cem.sharding import check_samples, split_samples

F = TypeVar("F", bound=Family)


@dataclasses.dataclass(frozen=True)
class RareEvent(Generic[F]):
    """An estimate of P(f(X) <= level)."""

    probability: float
    """The estimate; unbiased, whatever the proposal."""
    standard_error: float
    """Its standard error as the draws tell it: too small if the proposal misses a region."""
    levels: tuple[float, ...]
    """The thresholds on the way to the level."""
    reached: bool
    """Whether they reached it; if not, the proposal is bad and so is the estimate."""
    hits: int
    """Draws in the event."""
    draws: int
    """Draws of the estimate."""
    evaluations: int
    """Evaluations of f, those on the way included."""
    proposal: F
    """What was drawn from."""

    @property
    def relative_error(self) -> float:
        """Standard error over probability."""
        return self.standard_error / self.probability if self.probability else math.inf

    @property
    def naive_draws(self) -> float:
        """Draws from the nominal distribution that would give the same relative error."""
        if not self.probability:
            return math.inf
        if not self.relative_error:
            return 0.0
        return (1 - self.probability) / self.probability / self.relative_error**2


def rare_event(
    f: Callable[..., Float[Array, " samples"]],
    nominal: Family | Uniform,
    start: F,
    level: float,
    key: Array,
    args: tuple[Any, ...] = (),
    *,
    samples: int,
    draws: int,
    quantile: float = 0.1,
    smoothing: float = 1.0,
    max_levels: int = 60,
    mesh: Mesh | None = None,
) -> RareEvent[F]:
    """Estimates P(f(X) <= level) for X of a nominal distribution. For P(S >= s) pass -S and -s.

    Args:
      f: Takes points [N, d] and `args`, gives values [N]; NaN is no hit.
      nominal: Distribution of X.
      start: First proposal, often the nominal distribution itself.
      level: Threshold of the event.
      key: PRNG key.
      args: More arguments of `f`: trees of arrays.
      samples: N, per threshold on the way.
      draws: For the estimate; rounded up to batches of `samples`.
      quantile: Share of the samples that sets the next threshold.
      smoothing: How far to move towards each fit, in (0, 1].
      max_levels: Thresholds after which to give up.
      mesh: Devices to split the samples over, all its axes; default: not split.

    Raises:
      ValueError: If the numbers make no sense, or the mesh does not divide the samples.

    Reference:
      De Boer, Kroese, Mannor, Rubinstein, Annals of Operations Research 134 (2005), algorithm 2.1.
    """
    _check(samples, draws, max_levels, quantile, smoothing, level, mesh)
    sizes: dict[str, Any] = {"samples": samples, "mesh": mesh}
    proposal, levels, reached = start, [], False
    while len(levels) < max_levels and not reached:
        threshold, proposal = _next(
            *(f, nominal, proposal, level, jax.random.fold_in(key, len(levels)), args),
            **sizes,
            quantile=quantile,
            smoothing=smoothing,
        )
        levels.append(float(threshold))
        # As the function's dtype has the level.
        reached = bool(threshold <= level)
    batches = math.ceil(draws / samples)
    # Number max_levels was used for no threshold.
    keys = jax.random.split(jax.random.fold_in(key, max_levels), batches)
    sums = _estimate(f, nominal, proposal, level, keys, args, **sizes)
    total = batches * samples
    probability, standard_error, hits = _mean(sums, total)
    evaluations = len(levels) * samples + total
    return RareEvent(
        *(probability, standard_error, tuple(levels), reached, hits, total, evaluations, proposal)
    )


def _mean(sums: tuple[Array, ...], draws: int) -> tuple[float, float, int]:
    """Mean, its standard error and the hits, from what batches give."""
    first, second, hits = (np.asarray(x, np.float64) for x in sums)
    mean = np.exp(first).sum() / draws
    variance = max(np.exp(second).sum() / draws - mean**2, 0.0)
    return float(mean), math.sqrt(variance / draws), int(hits.sum())


def _check(
    samples: int,
    draws: int,
    max_levels: int,
    quantile: float,
    smoothing: float,
    level: float,
    mesh: Mesh | None,
) -> None:
    if min(samples, draws, max_levels) < 1 or not 0 < quantile < 1 or not 0 < smoothing <= 1:
        raise ValueError(
            "expected positive samples, draws and max_levels, quantile within (0, 1) and smoothing "
            f"within (0, 1], got {samples}, {draws}, {max_levels}, {quantile} and {smoothing}"
        )
    if not math.isfinite(level):
        raise ValueError(f"expected a finite level, got {level}")
    check_samples(samples, mesh)


@functools.partial(jax.jit, static_argnames=("f", "samples", "mesh", "quantile", "smoothing"))
def _next(
    f: Callable,
    nominal: Family | Uniform,
    proposal: F,
    level: Float[Array, ""] | float,
    key: Array,
    args: tuple[Any, ...],
    *,
    samples: int,
    mesh: Mesh | None,
    quantile: float,
    smoothing: float,
) -> tuple[Array, F]:
    """The next threshold, and the proposal fitted to what lies below it."""
    draw, fit = jax.random.split(key)
    x, values, log_ratio = _weighed(f, nominal, proposal, draw, args, samples, mesh)
    threshold = jnp.maximum(jnp.sort(values)[math.ceil(quantile * samples) - 1], level)
    below = (values <= threshold) & (values < jnp.inf)
    log_weights = jnp.where(below, log_ratio, -jnp.inf)
    return threshold, proposal.fitted(fit, x, log_weights, smoothing)


@functools.partial(jax.jit, static_argnames=("f", "samples", "mesh"))
def _estimate(
    f: Callable,
    nominal: Family | Uniform,
    proposal: Family,
    level: Float[Array, ""] | float,
    keys: Array,
    args: tuple[Any, ...],
    *,
    samples: int,
    mesh: Mesh | None,
) -> tuple[Array, ...]:
    """Per batch: logs of the sums of ratios and of squared ratios over hits, and the hits."""

    def batch(key: Array) -> tuple[Array, ...]:
        _, values, log_ratio = _weighed(f, nominal, proposal, key, args, samples, mesh)
        hit = values <= level
        log_hit = jnp.where(hit, log_ratio, -jnp.inf)
        return logsumexp(log_hit), logsumexp(2 * log_hit), hit.sum()

    return jax.lax.map(batch, keys)


def _weighed(
    f: Callable,
    nominal: Family | Uniform,
    proposal: Family,
    key: Array,
    args: tuple[Any, ...],
    samples: int,
    mesh: Mesh | None,
) -> tuple[Array, ...]:
    """Samples of the proposal, their values, and logs of their likelihood ratios."""
    x = split_samples(proposal.sample(key, samples), mesh)
    log_nominal = nominal.log_density(x)
    possible = log_nominal > -jnp.inf
    values = f(x, *args)
    # What the nominal distribution never draws sets no threshold.
    values = jnp.where(possible & ~jnp.isnan(values), values, jnp.inf)
    # Where both densities are 0, their difference is not a number.
    return x, values, jnp.where(possible, log_nominal - proposal.log_density(x), -jnp.inf)
