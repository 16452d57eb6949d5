"""Maps of a quantity over a plane of the state space, from samples."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
from scipy.stats import binned_statistic_dd


class Map(NamedTuple):
    """A quantity in bins; axes in the order of the coordinates, then the quantity's own."""

    edges: tuple[np.ndarray, ...]
    """Edges of the bins along each coordinate."""
    density: np.ndarray
    """Probability density of the samples."""
    mean: np.ndarray
    """Mean of the quantity in each bin; nan in bins without samples."""

    @property
    def weighted(self) -> np.ndarray:
        """Density times mean, 0 in bins without samples: of v it is the current, rho v."""
        extra = (1,) * (self.mean.ndim - self.density.ndim)
        return np.nan_to_num(self.mean) * self.density.reshape(*self.density.shape, *extra)


def binned(
    coordinates: npt.ArrayLike,
    quantity: npt.ArrayLike,
    *,
    bins: Sequence[int],
    bounds: npt.ArrayLike,
) -> Map:
    """Bins a quantity by where its samples lie.

    Args:
      coordinates: Where each sample lies, [samples, coordinates].
      quantity: What is binned, [samples, ...]: numbers or vectors.
      bins: Number of bins along each coordinate.
      bounds: Lowest and highest value of each coordinate, [coordinates, 2]. Samples outside are in
        no bin, but count in the density.

    Raises:
      ValueError: If the numbers of samples or of coordinates disagree.
    """
    where, what = np.asarray(coordinates, float), np.asarray(quantity, float)
    limits = np.asarray(bounds, float)
    if where.ndim != 2 or len(what) != len(where) or limits.shape != (where.shape[1], 2):
        raise ValueError(
            "expected coordinates [samples, coordinates], quantity [samples, ...] and bounds "
            f"[coordinates, 2], got {where.shape}, {what.shape} and {limits.shape}"
        )
    columns = what.reshape(len(what), -1).T
    # The stubs know one number of bins only.
    sides: Any = list(bins)
    means, edges, _ = binned_statistic_dd(where, columns, "mean", sides, limits)
    counts, _ = np.histogramdd(where, edges)
    widths = np.meshgrid(*(np.diff(edge) for edge in edges), indexing="ij")
    density = counts / (len(where) * np.prod(widths, axis=0))
    mean = np.moveaxis(means, 0, -1).reshape(*counts.shape, *what.shape[1:])
    return Map(tuple(edges), density, mean)
