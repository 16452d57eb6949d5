"""Which keys a query sees."""

import jax.numpy as jnp
from jaxtyping import Array, Bool, Int


def visible(
    query_positions: Int[Array, "length"],
    key_positions: Int[Array, "source"],
    query_segments: Int[Array, "batch length"] | None,
    key_segments: Int[Array, "batch source"] | None,
    *,
    causal: bool,
    offset: int,
) -> Bool[Array, "#batch 1 length source"]:
    """Returns True where query i may attend to key j.

    Args:
      query_positions: Index of each query row.
      key_positions: Index of each key row; any subset, so that blocks can ask for their part.
      query_segments: Document of each query; a negative one is padding and sees nothing.
      key_segments: Document of each key; given exactly when `query_segments` is.
      causal: Whether query i sees only keys j <= i + offset.
      offset: Number of keys before the first query, S - T.
    """
    mask = jnp.ones((1, len(query_positions), len(key_positions)), bool)
    if causal:
        mask &= key_positions[None, :] <= query_positions[:, None] + offset
    if query_segments is not None and key_segments is not None:
        same = query_segments[:, :, None] == key_segments[:, None, :]
        mask = mask & same & (query_segments >= 0)[:, :, None]
    return mask[:, None]
