"""How often |zeta| <= eps in a box: importance sampling beside the exact area.

    python -m experiments.zeta rare --box 0 1 10 30 --eps 0.01

The probability is a ratio of areas: of small discs about zeros that are in the box, and of the box.
It is not a probability that some zero is anywhere.
"""

import dataclasses
import functools
import math
from collections.abc import Callable
from typing import Any, Self

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from egattn import cem
from experiments.zeta.box import Box
from experiments.zeta.count import count
from experiments.zeta.euler_maclaurin import EulerMaclaurin
from experiments.zeta.evaluator import at, modulus
from experiments.zeta.functions import ZETA
from experiments.zeta.scan import sign_scan

SAMPLES, DRAWS = 4000, 40_000
_ANGLES = 64
_STEPS = 60
_MOST_COMPONENTS = 100
# A number that no level of an estimate has.
_OTHER = 1_000_000


@dataclasses.dataclass(frozen=True)
class Result:
    """What `--json` prints."""

    box: list[float]
    eps: float
    estimate: float
    standard_error: float
    exact: float
    """By integrating the level curves about the zeros on the line that a sign scan finds."""
    ratio: float
    """Estimate over exact."""
    levels: list[float]
    reached: bool
    """Whether the levels came down to eps; otherwise the estimate is worth nothing."""
    hits_per_zero: list[int]
    """Draws in the event by their nearest zero, of rising t."""
    zeros: list[float]
    means: list[list[float]]
    """Of the fitted components."""
    draws: int
    evaluations: int
    naive_cost: float
    """Draws without importance sampling that would give a standard error of 1 percent."""
    components: int
    seed: int


def run(box: Box, eps: float, components: int | None = None, seed: int = 0) -> Result:
    """Estimates P(|zeta(s)| <= eps) for s uniform in a box.

    Args:
      box: Where; all level curves must lie inside.
      eps: Level, > 0.
      components: Of the mixture; default: as many as there are zeros.
      seed: Decides every draw.

    Raises:
      ValueError: If eps is not positive, or so large that the exact area is not that of one region
        inside the box about each zero, or the box has no zero.
    """
    if not (math.isfinite(eps) and eps > 0):
        raise ValueError(f"expected eps > 0, got {eps}")
    if components is not None and not 1 <= components <= _MOST_COMPONENTS:
        raise ValueError(f"expected 1 to {_MOST_COMPONENTS} components, got {components}")
    zeros = sign_scan(ZETA, box).zeros
    if not len(zeros):
        raise ValueError(f"expected a box with zeros on the line, got {box}")
    exact = exact_probability(box, zeros, eps)
    components = len(zeros) if components is None else components
    event = estimate(box, mixture(box, components), eps, seed)
    nearest = np.abs(hits(box, event, eps, seed)[:, 1, None] - zeros).argmin(-1)
    return Result(
        box=list(dataclasses.astuple(box)),
        eps=eps,
        estimate=event.probability,
        standard_error=event.standard_error,
        exact=exact,
        ratio=event.probability / exact,
        levels=list(event.levels),
        reached=event.reached,
        hits_per_zero=np.bincount(nearest, minlength=len(zeros)).tolist(),
        zeros=zeros.tolist(),
        means=np.asarray(event.proposal.mean).tolist(),
        draws=event.draws,
        evaluations=event.evaluations,
        naive_cost=(1 - exact) / exact / 0.01**2,
        components=components,
        seed=seed,
    )


def describe(result: Result) -> str:
    """The result as text."""
    off = abs(result.estimate - result.exact) / max(result.standard_error, 1e-300)
    each = zip(result.zeros, result.hits_per_zero, strict=True)
    hits = ", ".join(f"{t:.4f}: {n:,}" for t, n in each)
    lines = [
        f"P(|zeta| <= {result.eps:g}) = {result.estimate:.6e} +- {result.standard_error:.1e}, "
        f"exactly {result.exact:.6e}: ratio {result.ratio:.4f}, {off:.1f} standard errors off",
        f"{len(result.levels)} levels, {result.evaluations:,} evaluations; without importance "
        f"sampling 1 percent would take {result.naive_cost:.1e} draws",
        f"hits per zero: {hits}",
    ]
    if not result.reached:
        lines.append("the levels did not come down to eps: the estimate is worth nothing")
    return "\n".join(lines)


def estimate(box: Box, start: cem.Family, eps: float, seed: int) -> cem.RareEvent[Any]:
    """Importance sampling of |zeta| <= eps from a first proposal; see `egattn.cem.rare_event`."""
    nominal = _nominal(box)
    evaluator = EulerMaclaurin(ZETA, box.t_high)
    evaluator.trust.check(box)
    return cem.rare_event(
        *(_modulus_of(evaluator), nominal, start, eps, jax.random.key(seed)),
        samples=SAMPLES,
        draws=DRAWS,
    )


def mixture(box: Box, components: int) -> cem.GaussianMixture:
    """The first proposal: uniform in the box."""
    return cem.GaussianMixture.over(*_nominal(box), components)


class Unweighted(cem.GaussianMixture):
    """A normal distribution fitted without likelihood ratios: what must not be done, see R4."""

    def fitted(self, key: Array, x: Array, log_weights: Array, smoothing: float | Array) -> Self:
        """Fits all that lies below the threshold alike."""
        return super().fitted(key, x, jnp.where(log_weights > -jnp.inf, 0, -jnp.inf), smoothing)


def unweighted(box: Box) -> Unweighted:
    """One component, no uniform part."""
    return Unweighted.over(*_nominal(box), 1, 0.0)


def exact_probability(box: Box, zeros: Float[np.ndarray, " zeros"], eps: float) -> float:
    """Area of {|zeta| <= eps} in a box over the box's, from the level curve about each zero.

    Args:
      box: Where.
      zeros: Heights of all zeros, which are on the line.
      eps: Level.

    Raises:
      ValueError: If the box has other zeros, or a region is not star-shaped about its zero, meets
        another one or leaves the box.
    """
    evaluator = EulerMaclaurin(ZETA, box.t_high)
    if (number := count(evaluator, box)) != len(zeros):
        raise ValueError(f"expected all zeros of {box} on the line, got {number} and {len(zeros)}")
    gaps = np.diff(zeros, prepend=-np.inf, append=np.inf)
    area = 0.0
    for zero, below, above in zip(zeros, gaps[:-1], gaps[1:], strict=True):
        directions = np.exp(2j * np.pi * np.arange(_ANGLES) / _ANGLES)
        radius = _level_curve(evaluator, 0.5 + 1j * zero, directions, eps)
        edge = 0.5 + 1j * zero + radius * directions
        inside = all(box.contains(s.real, s.imag) for s in edge)
        if not inside or 2 * radius.max() >= min(below, above):
            raise ValueError(
                f"expected eps for which each region |zeta| <= eps lies inside {box}, got {eps:g}"
            )
        # The trapezoidal rule, exact but for rounding: the curve is periodic and analytic.
        area += np.pi * (radius**2).mean()
    return area / box.area


def _level_curve(
    evaluator: EulerMaclaurin, zero: complex, directions: np.ndarray, eps: float
) -> Float[np.ndarray, " angles"]:
    """Distance from a zero to |zeta| = eps in each direction."""
    # A first guess: the chord's slope.
    radius = np.full(len(directions), 1e-4)
    # |zeta| is nearly proportional to the distance.
    for _ in range(_STEPS):
        radius *= eps / np.abs(at(evaluator, zero + radius * directions))
        if np.abs((radius * directions).real).max() > 0.5:
            raise ValueError(
                f"expected eps for which each region |zeta| <= eps lies in the strip, got {eps:g}"
            )
    on_the_way = zero + radius * directions * np.array([[0.25], [0.5], [0.75], [1]])
    sizes = np.abs(at(evaluator, on_the_way.ravel())).reshape(on_the_way.shape) / eps
    if not (np.diff(sizes, axis=0) > 0).all() or np.abs(sizes[-1] - 1).max() > 1e-6:
        raise ValueError(
            f"expected eps whose level curves are single loops, and not lost in rounding, "
            f"got {eps:g}"
        )
    return radius


def hits(box: Box, event: cem.RareEvent[Any], eps: float, seed: int) -> np.ndarray:
    """Draws [N, 2] of an estimate's proposal that lie in the event, of as many as it took."""
    points = event.proposal.sample(jax.random.fold_in(jax.random.key(seed), _OTHER), event.draws)
    values = jax.jit(_modulus_of(EulerMaclaurin(ZETA, box.t_high)))(points)
    inside = jnp.isfinite(_nominal(box).log_density(points))
    return np.asarray(points[(values <= eps) & inside])


def _nominal(box: Box) -> cem.Uniform:
    low, high = np.array(dataclasses.astuple(box), float).reshape(2, 2).T
    return cem.Uniform(jnp.asarray(low), jnp.asarray(high))


@functools.cache
def _modulus_of(evaluator: EulerMaclaurin) -> Callable[[Array], Array]:
    """|zeta| of points (sigma, t); one function per evaluator, for jit knows them by identity."""

    def f(points: Array) -> Array:
        table = evaluator.tables(np.array(0.0))
        return modulus(evaluator.values(table, points - jnp.array([0.5, 0.0])))

    return f
