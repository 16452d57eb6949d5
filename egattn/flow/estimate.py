"""Means with standard errors."""

from typing import NamedTuple

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float


class Estimate(NamedTuple):
    """A mean and how well it is known."""

    value: Float[Array | np.ndarray, "*shape"]
    """The estimate."""
    standard_error: Float[Array | np.ndarray, "*shape"]
    """The standard deviation of its distribution."""


def mean(samples: Float[Array, "samples *shape"], *, blocks: int | None = None) -> Estimate:
    """Mean of samples and its standard error.

    Args:
      samples: Independent samples along the first axis, or consecutive ones.
      blocks: Number of blocks of consecutive samples to take for independent, for a trajectory
        whose blocks last far longer than its memory; None if the samples are independent. What
        does not fill the last block is left out of the error only.

    Raises:
      ValueError: If there are fewer than two samples or blocks, or more blocks than samples.
    """
    value = samples.mean(0)
    return Estimate(value, _standard_error(samples - value, blocks))


def ratio(
    numerator: Float[Array, "samples *shape"],
    denominator: Float[Array, "samples *shape"],
    *,
    blocks: int | None = None,
) -> Estimate:
    """Ratio of two means over the same samples, and its standard error to first order.

    Args:
      numerator: Samples along the first axis.
      denominator: Their other quantity.
      blocks: See `mean`.
    """
    value = numerator.mean(0) / denominator.mean(0)
    error = _standard_error(numerator - value * denominator, blocks)
    return Estimate(value, error / jnp.abs(denominator.mean(0)))


def _standard_error(centred: Array, blocks: int | None) -> Array:
    count = len(centred) if blocks is None else blocks
    if not 2 <= count <= len(centred):
        raise ValueError(f"expected 2 to {len(centred)} independent samples or blocks, got {count}")
    each = len(centred) // count
    groups = centred[: each * count].reshape(count, each, *centred.shape[1:])
    return groups.mean(1).std(0, ddof=1) / count**0.5
