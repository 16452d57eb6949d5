"""Law of large numbers: how the frequency of |zeta| <= eps in a box comes to a ratio of areas.

    python -m experiments.zeta frequency

What it converges to is an area in the sampled box. {zeta = 0} itself has probability 0, so no
number of samples visits it, and a zero that no sample came near is not one that does not exist.
"""

import dataclasses
import functools
import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float
from scipy.stats import beta, norm

from experiments.zeta import balls
from experiments.zeta.box import Box
from experiments.zeta.euler_maclaurin import EulerMaclaurin
from experiments.zeta.evaluator import Evaluator, at, modulus
from experiments.zeta.functions import ZETA
from experiments.zeta.rare import exact_probability
from experiments.zeta.scan import sign_scan
from experiments.zeta.taylor import Taylor

_HEIGHT = 0.8
_FEW = 10
# Of a difference quotient.
_STEP = 1e-5
# Standard deviations by which no window of a draw exceeds its mean number of points.
_SPARE = 8
# What a window holds of so many fits into memory.
_MOST = 1_000_000_000


@dataclasses.dataclass(frozen=True)
class Result:
    """What `--json` prints."""

    box: list[float]
    eps: float
    exact: float
    samples: list[int]
    frequency: list[float]
    """Of the first run, for each number of samples."""
    interval: list[list[float]]
    """95 percent, of that run: normal from ten hits on, else Clopper and Pearson."""
    rms_error: list[float]
    """Over all runs."""
    slope: float | None
    """Of log rms error over log samples; the law says -1/2. None of one number of samples."""
    near_line: float
    """Share of the hits with |sigma - 1/2| <= eps / 2."""
    near_line_exact: float
    """The same of discs of radius eps / |zeta'|."""
    runs: int
    seed: int


class Hits(NamedTuple):
    """Samples with |zeta| <= eps."""

    total: int
    near_line: int
    """Of them, those with |sigma - 1/2| <= eps / 2."""


def run(box: Box, eps: float, samples: tuple[int, ...], runs: int, seed: int = 0) -> Result:
    """Samples a box uniformly, again and again.

    Args:
      box: Where; at most 0.5 to either side of the line.
      eps: Level, > 0.
      samples: Numbers of samples, rising.
      runs: Independent repetitions of each.
      seed: Decides every draw.

    Raises:
      ValueError: If a number makes no sense, or eps is too large for an exact area.
    """
    if not (math.isfinite(eps) and eps > 0) or runs < 2:
        raise ValueError(f"expected eps > 0 and at least 2 runs, got {eps} and {runs}")
    rising = list(samples) == sorted(set(samples))
    if not samples or not rising or samples[0] < 1 or samples[-1] > _MOST:
        raise ValueError(f"expected rising numbers of samples from 1 to {_MOST:,}, got {samples}")
    zeros = sign_scan(ZETA, box).zeros
    exact = exact_probability(box, zeros, eps)
    sampler = Sampler(box, eps)
    found = [[sampler.draw(n, (seed, i, n)) for i in range(runs)] for n in samples]
    frequency = np.array(
        [[x.total / n for x in row] for n, row in zip(samples, found, strict=True)]
    )
    rms = np.sqrt(((frequency - exact) ** 2).mean(-1))
    slope = float(np.polyfit(np.log(samples), np.log(rms), 1)[0]) if len(samples) > 1 else None
    hits = [x for row in found for x in row]
    return Result(
        box=list(dataclasses.astuple(box)),
        eps=eps,
        exact=exact,
        samples=list(samples),
        frequency=frequency[:, 0].tolist(),
        interval=[list(interval(row[0].total, n)) for n, row in zip(samples, found, strict=True)],
        rms_error=rms.tolist(),
        slope=slope,
        near_line=sum(x.near_line for x in hits) / max(sum(x.total for x in hits), 1),
        near_line_exact=near_line(box, zeros),
        runs=runs,
        seed=seed,
    )


class Sampler:
    """Uniform samples of a box, counted by the Taylor polynomials of its windows."""

    def __init__(self, box: Box, eps: float):
        count = math.ceil((box.t_high - box.t_low) / _HEIGHT)
        edges = np.linspace(box.t_low, box.t_high, count + 1)
        self._half = (edges[1] - edges[0]) / 2
        self._sides = box.sigma_low - 0.5, box.sigma_high - 0.5
        self._eps = eps
        self._evaluator = evaluator(box, self._half)
        self._tables = self._evaluator.tables((edges[1:] + edges[:-1]) / 2)
        self._windows = count

    def draw(self, samples: int, seed: tuple[int, ...]) -> Hits:
        """Hits among independent uniform samples."""
        rng = np.random.default_rng(seed)
        # How many fall into which window is random, too.
        counts = rng.multinomial(samples, np.full(self._windows, 1 / self._windows))
        mean = samples / self._windows
        size = math.ceil(mean + _SPARE * math.sqrt(mean)) + _SPARE
        key = jax.random.key(int(rng.integers(2**31)))
        total, near = _count(
            *(self._evaluator, self._tables, jnp.asarray(counts), key),
            *(self._sides, self._half, self._eps),
            size=size,
        )
        return Hits(int(total), int(near))


def evaluator(box: Box, half: float) -> Evaluator:
    """Polynomials in float32, or without python-flint the function itself."""
    EulerMaclaurin(ZETA, box.t_high).trust.check(box)
    if not balls.AVAILABLE:
        return EulerMaclaurin(ZETA, box.t_high)
    return Taylor(ZETA, 1.01 * math.hypot(0.5, half), "float32")


@functools.partial(jax.jit, static_argnames=("evaluator", "size"))
def _count(
    evaluator: Evaluator,
    tables: NamedTuple,
    counts: Array,
    key: Array,
    sides: tuple[float, float],
    half: float,
    eps: float,
    *,
    size: int,
) -> tuple[Array, Array]:
    """Hits among the first so many of each window's points."""

    def one(table: Any, count: Array, key: Array) -> tuple[Array, Array]:
        draws = jax.random.uniform(key, (size, 2), jnp.float32)
        low, high = sides
        u, v = low + (high - low) * draws[:, 0], half * (2 * draws[:, 1] - 1)
        values = evaluator.values(table, jnp.stack([u, v], -1))
        hit = (modulus(values) <= eps) & (jnp.arange(size) < count)
        return hit.sum(), (hit & (jnp.abs(u) <= eps / 2)).sum()

    # One window after the other: all at once would hold every point in memory.
    total, near = jax.lax.map(
        lambda row: one(*row), (tables, counts, jax.random.split(key, len(counts)))
    )
    return total.sum(), near.sum()


def interval(hits: int, samples: int) -> tuple[float, float]:
    """95 percent interval of a frequency."""
    share = hits / samples
    if hits >= _FEW:
        half = float(norm.ppf(0.975)) * math.sqrt(share * (1 - share) / samples)
        return share - half, share + half
    low = float(beta.ppf(0.025, hits, samples - hits + 1)) if hits else 0.0
    return low, float(beta.ppf(0.975, hits + 1, samples - hits))


def near_line(box: Box, zeros: Float[np.ndarray, " zeros"], share: float = 0.5) -> float:
    """Share of the discs' area within `share` times eps of the line, to leading order in eps.

    It is well below 1: a hit beside the line is what zeros on the line look like.
    """
    evaluator = EulerMaclaurin(ZETA, box.t_high)
    beside = 0.5 + np.array([[-_STEP], [_STEP]]) + 1j * zeros
    left, right = at(evaluator, beside.ravel()).reshape(beside.shape)
    slope = np.abs(right - left) / (2 * _STEP)
    x = np.minimum(share * slope, 1)
    inside = 2 / np.pi * (x * np.sqrt(1 - x * x) + np.arcsin(x))
    return float((inside / slope**2).sum() / (1 / slope**2).sum())


def describe(result: Result) -> str:
    """The result as text."""
    lines = [f"frequency of |zeta| <= {result.eps:g}, exactly {result.exact:.6e}"]
    lines += [
        f"{n:>12,} samples: {p:.6e}, 95 % within {low:.6e} to {high:.6e}; rms error {rms:.2e}"
        for n, p, (low, high), rms in zip(
            *(result.samples, result.frequency, result.interval, result.rms_error), strict=True
        )
    ]
    if result.slope is not None:
        lines.append(f"slope of the error {result.slope:.3f}; the law of large numbers says -0.5")
    lines.append(
        f"hits within eps / 2 of the line: {result.near_line:.4f}, of discs about the zeros "
        f"{result.near_line_exact:.4f}"
    )
    return "\n".join(lines)
