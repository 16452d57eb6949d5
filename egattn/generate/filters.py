"""Truncations of a next-token distribution: top-k, top-p, min-p."""

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Bool, Float

from egattn.generate.config import Sampling, Scalar


def filter_logits(
    logits: Float[Array, "*batch vocab"], sampling: Sampling, keep: int = 1
) -> Float[Array, "*batch vocab"]:
    """Divides logits by the temperature and sets tokens outside the truncations to -inf.

    Args:
      logits: Logits [..., V], float32; -inf marks impossible tokens.
      sampling: Temperature and truncations; temperature 0 divides by 1.
      keep: Tokens that every truncation leaves at least.

    Raises:
      ValueError: If a value that is not traced is out of range.
    """
    sampling.check(logits.shape[-1])
    logits = logits / sampling.divisor
    if sampling.top_k is not None:
        logits = jnp.where(_top_k(logits, max(sampling.top_k, keep)), logits, -jnp.inf)
    if sampling.top_p is not None:
        logits = jnp.where(_top_p(logits, sampling.top_p, keep), logits, -jnp.inf)
    if sampling.min_p is not None:
        enough = above_share(logits, jnp.max(logits, -1, keepdims=True), sampling.min_p)
        enough = enough if keep == 1 else enough | _top_k(logits, keep)
        logits = jnp.where(enough, logits, -jnp.inf)
    return logits


def tempered(logits: Float[Array, "*batch vocab"], temperature: Scalar) -> Array:
    """Logits divided by the temperature, the largest first moved to 0, lest they overflow."""
    return (logits - jnp.max(logits, -1, keepdims=True)) / temperature


def above_share(logits: Array, largest: Array, share: Scalar) -> Bool[Array, "..."]:
    """Where a possible token is at least `share` as probable as the most probable one."""
    return (logits >= largest + jnp.log(jnp.float32(share))) & (logits > -jnp.inf)


def nucleus(log_probs: Float[Array, "*batch ranks"], p: Scalar) -> Bool[Array, "*batch ranks"]:
    """Marks the smallest prefix that holds mass p of descending probabilities; at least one."""
    probabilities = jnp.exp(log_probs)
    before = jnp.cumsum(probabilities, -1) - probabilities
    # A float32 sum over many tokens reaches 1 early, and p = 1 promises to lose none.
    kept = (before < p) | (jnp.asarray(p) >= 1)
    return (kept & (log_probs > -jnp.inf)) | (jnp.arange(log_probs.shape[-1]) == 0)


def _top_k(logits: Float[Array, "*batch vocab"], k: int) -> Bool[Array, "*batch vocab"]:
    k = min(k, logits.shape[-1])
    return logits >= lax.top_k(logits, k)[0][..., -1:]


def _top_p(
    logits: Float[Array, "*batch vocab"], p: Scalar, keep: int
) -> Bool[Array, "*batch vocab"]:
    descending, order = lax.top_k(logits, logits.shape[-1])
    kept = nucleus(jax.nn.log_softmax(descending), p) | (jnp.arange(logits.shape[-1]) < keep)
    return jnp.put_along_axis(jnp.zeros_like(kept), order, kept, -1, inplace=False)
