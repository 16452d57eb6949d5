"""Attention of one new position per sequence over the keys and values kept so far."""

import jax.numpy as jnp
from jaxtyping import Array, Float, Int


def attend_cached(
    query: Float[Array, "batch 1 heads head_dim"],
    key: Float[Array, "batch kv_heads source head_dim"],
    value: Float[Array, "batch kv_heads source head_dim"],
    position: Int[Array, " batch"],
    temperature: Float[Array, "batch heads 1"] | None = None,
) -> tuple[Float[Array, "batch 1 heads head_dim"], Float[Array, "batch heads 1"]]:
    """Returns the output in the query's dtype and the entropy in nats, float32.

    Args:
      query: Query of the new position.
      key: Keys, the new one included; what is behind it is not read.
      value: Values.
      position: Index of the new position: each sequence has its own.
      temperature: Softmax temperature; default 1.
    """
    batch, kv_heads, source, head_dim = key.shape
    scale = head_dim**-0.5 / (1.0 if temperature is None else temperature)
    scale = jnp.broadcast_to(scale, (batch, query.shape[2], 1)).reshape(batch, kv_heads, -1, 1)
    q = query.reshape(batch, kv_heads, -1, head_dim)
    s = scale * jnp.einsum("bkgd,bksd->bkgs", q, key, preferred_element_type=jnp.float32)
    seen = (jnp.arange(source) <= position[:, None])[:, None, None]
    # The new position itself is always seen.
    x = jnp.where(seen, s, -jnp.inf)
    x = jnp.where(seen, x - x.max(-1, keepdims=True), 0.0)
    e = jnp.where(seen, jnp.exp(x), 0.0)
    total = e.sum(-1)
    weights = (e / total[..., None]).astype(value.dtype)
    out = jnp.einsum("bkgs,bksd->bkgd", weights, value, preferred_element_type=jnp.float32)
    entropy = jnp.log(total) - (e * x).sum(-1) / total
    return out.reshape(query.shape).astype(query.dtype), entropy.reshape(batch, -1, 1)
