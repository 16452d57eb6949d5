"""A search that sees sigma rounded: what it reports about where zeros are."""

import dataclasses
from typing import NamedTuple

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from experiments.zeta.box import Box
from experiments.zeta.euler_maclaurin import EulerMaclaurin
from experiments.zeta.evaluator import Trust, Values
from experiments.zeta.functions import DirichletSeries
from experiments.zeta.search import cross_entropy, even_windows

_SLOPE = 4.0
_SAME = 0.05


@dataclasses.dataclass(frozen=True)
class Quantised:
    """An evaluator that rounds sigma to multiples of 2**-bits."""

    inner: EulerMaclaurin
    bits: int

    @property
    def trust(self) -> Trust:
        """That of the evaluator."""
        return self.inner.trust

    def tables(self, anchors: Float[np.ndarray, " windows"]) -> NamedTuple:
        """See `Evaluator`."""
        return self.inner.tables(anchors)

    def values(self, table: NamedTuple, offsets: Float[Array, "points 2"]) -> Values:
        """See `Evaluator`."""
        return self.inner.values(table, offsets.at[:, 0].set(quantise(offsets[:, 0], self.bits)))


def quantise(x: Array, bits: int) -> Array:
    """The nearest multiple of 2**-bits."""
    return jnp.round(x * 2.0**bits) / 2.0**bits


def reported_sigmas(
    function: DirichletSeries, box: Box, bits: int, seed: int
) -> Float[np.ndarray, " zeros"]:
    """Sigma of what a search takes for zeros, by rising height.

    It accepts what rounding alone can make of a zero: |f| up to a slope of 4 times half a step.
    """
    evaluator = Quantised(EulerMaclaurin(function, box.t_high), bits)
    parts = even_windows(box, 1.0)
    best = cross_entropy(evaluator, parts, seed, rounds=25)
    sigma = np.asarray(quantise(best.x[:, 0], bits)) + 0.5
    t = np.asarray(best.x[:, 1]) + parts.anchor
    accepted = np.asarray(best.value) <= _SLOPE * 2.0 ** -(bits + 1)
    kept: list[tuple[float, float]] = []
    for point in zip(sigma[accepted], t[accepted], strict=True):
        # Windows overlap, so that a zero may be reported twice.
        if all(np.hypot(*np.subtract(point, other)) > _SAME for other in kept):
            kept.append(point)
    return np.array([s for s, _ in sorted(kept, key=lambda point: point[1])])
