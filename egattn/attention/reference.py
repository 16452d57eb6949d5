"""Dense attention with entropy in float32: the definition all implementations must equal."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from egattn.attention.mask import visible
from egattn.attention.sums import row_sum


def attend(
    query: Float[Array, "batch length heads head_dim"],
    key: Float[Array, "batch source kv_heads head_dim"],
    value: Float[Array, "batch source kv_heads head_dim"],
    row_scale: Float[Array, "batch heads length"],
    segment_ids: Int[Array, "batch length"] | None,
    *,
    causal: bool,
) -> tuple[Float[Array, "batch length heads head_dim"], Float[Array, "batch heads length"]]:
    """Returns attention output and entropy in nats; holds the whole [B, H, T, S] score array.

    Args:
      query: Queries.
      key: Keys; query head h reads key head h // (heads / kv_heads).
      value: Values.
      row_scale: Factor of each row's scores, `scale / temperature`.
      segment_ids: Document of each position; None means one document.
      causal: Whether query i sees only keys up to its own position.
    """
    length, source = query.shape[1], key.shape[1]
    group = query.shape[2] // key.shape[2]
    q = query.astype(jnp.float32) * jnp.swapaxes(row_scale, 1, 2)[..., None]
    k = jnp.repeat(key.astype(jnp.float32), group, axis=2)
    v = jnp.repeat(value.astype(jnp.float32), group, axis=2)
    mask = visible(
        jnp.arange(length),
        jnp.arange(source),
        segment_ids,
        segment_ids,
        causal=causal,
        offset=source - length,
    )
    seen = mask.any(-1)

    highest = jax.lax.Precision.HIGHEST
    s = jnp.einsum("bthd,bshd->bhts", q, k, precision=highest)
    row_max = jnp.where(seen, jnp.max(jnp.where(mask, s, -jnp.inf), axis=-1), 0.0)
    # Relative to the row's maximum nothing cancels, and masked scores never meet an infinity.
    x = jnp.where(mask, s - jax.lax.stop_gradient(row_max)[..., None], 0.0)
    e = jnp.where(mask, jnp.exp(x), 0.0)
    total = jnp.where(seen, row_sum(e), 1.0)
    out = jnp.einsum("bhts,bshd->bthd", e / total[..., None], v, precision=highest)
    # -sum p log p = logsumexp(s) - sum p s, exact at p = 0 and without an epsilon.
    entropy = jnp.log(total) - row_sum(e * x) / total
    return out.astype(query.dtype), entropy
