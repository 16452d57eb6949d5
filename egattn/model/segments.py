"""Documents in one window: which positions belong together, and where each document starts."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Int


def segment_ids(
    tokens: Int[Array, "batch length"], end_token_id: int
) -> Int[Array, "batch length"]:
    """Numbers the documents of each window from 0; an end token belongs to the one it ends.

    Args:
      tokens: Windows of packed documents [B, T].
      end_token_id: The token that ends every document.
    """
    ends = (tokens == end_token_id).astype(jnp.int32)
    return jnp.cumsum(ends, axis=1) - ends


def restarted_positions(ids: Int[Array, "batch length"]) -> Int[Array, "batch length"]:
    """Place of each position within its segment, from 0.

    Args:
      ids: Segments [B, T]; a position whose id is not that before it starts one.
    """
    index = jnp.broadcast_to(jnp.arange(ids.shape[1], dtype=jnp.int32), ids.shape)
    before = jnp.concatenate([ids[:, :1], ids[:, :-1]], axis=1)
    return index - jax.lax.cummax(jnp.where(ids == before, 0, index), axis=1)
