"""Statistics of attention entropy and the entropy penalty: pure, jittable functions on arrays."""

import math
from typing import Literal, NamedTuple, get_args

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from egattn._spelling import unknown

Kind = Literal["hard", "excess"]
Reduction = Literal["mean", "head", "sum", "none"]


def max_entropy(
    length: int, causal: bool = True, per_row: bool = False
) -> Float[Array, ""] | Float[Array, " length"]:
    """Entropy of a uniform attention row, in nats.

    Args:
      length: Number of positions T.
      causal: Whether row i sees only i + 1 keys; matters only per row.
      per_row: Whether each row gets its own ceiling, the log of the number of keys it sees.

    Returns:
      The scalar log(T) (the paper's ceiling for every row), or the ceilings [T].
    """
    if length < 1:
        raise ValueError(f"length must be at least 1, got {length}")
    if not per_row:
        return jnp.log(jnp.float32(length))
    keys = jnp.arange(1, length + 1) if causal else jnp.full(length, length)
    return jnp.log(keys.astype(jnp.float32))


def head_mean(
    entropy: Float[Array, "*layers batch heads length"],
) -> Float[Array, "*layers heads"]:
    """Mean of each head over positions, then over the batch."""
    # In one reduction XLA may add up all rows one by one, and lose digits.
    return entropy.mean(-1).mean(-2)


def uniform_entropy(length: int) -> float:
    """Mean row entropy of a causal head that attends uniformly, (log T!) / T nats.

    Args:
      length: Number of positions T.
    """
    return math.lgamma(length + 1) / length


def entropy_penalty(
    entropy: Float[Array, "*layers batch heads length"],
    threshold: Float[Array, "*_layers _heads"],
    max_entropy: Float[Array, "..."] | float,
    tolerance: float = 0.2,
    kind: Kind = "hard",
    reduction: Reduction = "mean",
) -> Float[Array, "..."]:
    """Penalty on entropies that leave a margin around a (learnable) fraction of the maximum.

    With `delta = E - threshold * max_entropy` and `margin = tolerance * max_entropy`:

    Args:
      entropy: Entropies [L, B, H, T] or [B, H, T], nats.
      threshold: Target fraction of the maximum, [L, H] or [H].
      max_entropy: Ceiling in nats: a scalar or one per row, [T] or [B, T], see `max_entropy`.
      tolerance: Half-width of the free margin as a fraction of the ceiling (the paper's gamma).
      kind: "hard" is delta^2 outside the margin and 0 inside, as published; "excess" is
        (|delta| - margin)^2 outside, which has neither a jump nor a kink in its slope's start.
      reduction: "mean" penalises each position and averages over everything; "head" penalises
        the head's mean entropy over batch and positions, then averages over heads and layers
        (Algorithm 1); "sum" sums over batch and positions and averages over heads and layers (the
        published code; equals "mean" times B * T); "none" returns [L, B, H, T] or [B, H, T].

    Returns:
      A scalar, or the penalty of each position for "none".

    Raises:
      ValueError: If a name is unknown, shapes disagree or the tolerance is negative.

    Reference:
      Jha & Reagen, arXiv 2501.03489, Algorithm 1.
    """
    ceiling = jnp.asarray(max_entropy, jnp.float32)
    _check_penalty(entropy, threshold, ceiling, tolerance, kind, reduction)
    if reduction == "head":
        entropy = head_mean(entropy)[..., None, :, None]
        ceiling = ceiling.mean()
    elif ceiling.ndim == 2:
        ceiling = ceiling[:, None]
    delta = entropy - threshold[..., None, :, None] * ceiling
    distance, margin = jnp.abs(delta), tolerance * ceiling
    excess = distance if kind == "hard" else distance - margin
    # Written so that a NaN entropy stays NaN instead of passing for "inside the margin".
    penalty = jnp.where(distance <= margin, 0.0, excess**2)
    if reduction == "none":
        return penalty
    if reduction == "sum":
        return penalty.sum((-3, -1)).mean()
    return penalty.mean()


def _check_penalty(entropy, threshold, ceiling, tolerance, kind, reduction) -> None:
    if kind not in get_args(Kind):
        raise ValueError(unknown("penalty kind", kind, get_args(Kind)))
    if reduction not in get_args(Reduction):
        raise ValueError(unknown("penalty reduction", reduction, get_args(Reduction)))
    if tolerance < 0:
        raise ValueError(f"tolerance must be >= 0, got {tolerance}")
    expected = (*entropy.shape[:-3], entropy.shape[-2])
    if entropy.ndim not in (3, 4) or threshold.shape != expected:
        raise ValueError(
            "entropy must be [L, B, H, T] or [B, H, T] with threshold [L, H] or [H], "
            f"got {entropy.shape} and {threshold.shape}"
        )
    rows = entropy.shape[-1:], (entropy.shape[-3], entropy.shape[-1])
    if ceiling.shape not in ((), *rows):
        raise ValueError(f"max_entropy must be a scalar, [T] or [B, T], got {ceiling.shape}")


class EntropySummary(NamedTuple):
    """Statistics of attention entropy; nats unless said otherwise."""

    mean: Float[Array, ""]
    """Mean over everything."""
    layer_mean: Float[Array, " layers"]
    """Mean of each layer."""
    head_mean: Float[Array, "layers heads"]
    """Mean of each head over batch and positions."""
    quantiles: Float[Array, "3 layers heads"]
    """5 %, 50 % and 95 % quantiles of each head's rows."""
    range_shares: Float[Array | np.ndarray, "4"]
    """Share of heads per range, see `range_shares`."""
    nonfinite: Int[Array, " layers"]
    """Number of rows of each layer whose entropy is NaN or infinite."""


def entropy_summary(entropy: Float[Array, "*layers batch heads length"]) -> EntropySummary:
    """Summarises entropies [L, B, H, T] (or [B, H, T], taken as one layer)."""
    if entropy.ndim == 3:
        entropy = entropy[None]
    if entropy.ndim != 4:
        raise ValueError(f"entropy must be [L, B, H, T] or [B, H, T], got {entropy.shape}")
    means = head_mean(entropy)
    return EntropySummary(
        mean=means.mean(),
        layer_mean=means.mean(1),
        head_mean=means,
        quantiles=jnp.quantile(entropy, jnp.array([0.05, 0.5, 0.95]), axis=(1, 3)),
        range_shares=range_shares(means),
        nonfinite=jnp.sum(~jnp.isfinite(entropy), axis=(1, 2, 3), dtype=jnp.int32),
    )


def range_counts(
    head_mean: Float[Array | np.ndarray, "layers heads"],
) -> Int[Array | np.ndarray, "4"]:
    """Counts heads in [0, M/4), [M/4, M/2), [M/2, 3M/4), [3M/4, M], M the largest head mean.

    In NumPy where given a NumPy array: who only reads a run must not claim its accelerator.

    Args:
      head_mean: Head means [L, H], nats; those that are not finite are in no range.

    Reference:
      Jha & Reagen, arXiv 2501.03489, Figure 3.
    """
    xp = np if isinstance(head_mean, np.ndarray) else jnp
    finite = xp.isfinite(head_mean)
    largest = xp.where(finite, head_mean, 0.0).max()
    # All-zero entropies (M = 0) are a collapse: they reach no range but the lowest.
    edges = xp.where(largest > 0, largest * xp.array([0.25, 0.5, 0.75]), xp.inf)
    reached = (head_mean[..., None] >= edges).sum(-1)
    return (finite[..., None] & (reached[..., None] == xp.arange(4))).sum((0, 1))


def range_shares(
    head_mean: Float[Array | np.ndarray, "layers heads"],
) -> Float[Array | np.ndarray, "4"]:
    """Share of all heads in each range, see `range_counts`."""
    return range_counts(head_mean) / head_mean.size
