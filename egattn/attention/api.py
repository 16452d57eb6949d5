"""`entropy_attention`: checks its arguments, then hands them to one implementation."""

import jax.numpy as jnp
import numpy as np
from jax.core import Tracer
from jaxtyping import Array, Float, Int

from egattn.attention.select import Implementation, Problem, select


def entropy_attention(
    query: Float[Array, "_batch _length _heads _head_dim"],
    key: Float[Array, "_batch _source _kv_heads _head_dim"],
    value: Float[Array, "_batch _source _kv_heads _head_dim"],
    temperature: Float[Array, "..."] | float | None = None,
    scale: float | None = None,
    causal: bool = True,
    segment_ids: Int[Array, "_batch _length"] | None = None,
    implementation: Implementation | None = None,
) -> tuple[Float[Array, "_batch _length _heads _head_dim"], Float[Array, "_batch _heads _length"]]:
    """Attention that returns the Shannon entropy of each of its rows, both differentiable.

    Row i of a head attends with `a = softmax_j(scale * q_i . k_j / t_i)`; its entropy is
    `E_i = -sum_j a_ij log a_ij`. A row that sees no key has output 0, entropy 0, gradient 0.

    Args:
      query: Queries [B, T, H, D], float32, bfloat16 or float16.
      key: Keys [B, S, K, D]; K divides H (grouped-query attention).
      value: Values [B, S, K, D].
      temperature: Softmax temperature t > 0, broadcastable to [B, H, T], e.g. [H, T]; default 1.
      scale: Factor of the scores; default `D ** -0.5`.
      causal: Whether query i sees only keys j <= i + S - T (aligned at the end, as a cache needs).
      segment_ids: Document of each position [B, T]; documents do not see each other and a
        negative id marks padding. Needs S = T.
      implementation: "reference" (dense, the definition), "chunked" (plain JAX, no T x T array),
        "cudnn" (NVIDIA's fused kernel), "pallas_gpu" (Hopper), "pallas_tpu", or None: the fastest
        that can run these arguments where they are, see `egattn.attention.implementations`.

    Returns:
      The output [B, T, H, D] in the query's dtype, and the entropy [B, H, T] in nats, float32.

    Raises:
      ValueError: If shapes disagree, a temperature is not positive, or a name is unknown.
      NotImplementedError: If the named implementation cannot run these arguments here.

    Reference:
      Jha & Reagen, Entropy-Guided Attention for Private LLMs, arXiv 2501.03489, Appendix A.
    """
    query, key, value, row_scale = checked(query, key, value, temperature, scale, segment_ids)
    problem = Problem.of(query, key, value, causal=causal, segment_ids=segment_ids)
    attend = select(implementation, problem)
    return attend(query, key, value, row_scale, segment_ids, causal=causal)


def checked(query, key, value, temperature, scale, segment_ids):
    """Checked query, key and value of `entropy_attention`, and its scores' factors [B, H, T]."""
    query, key, value = jnp.asarray(query), jnp.asarray(key), jnp.asarray(value)
    _check_shapes(query, key, value, segment_ids)
    batch, length, heads, head_dim = query.shape
    row_scale = jnp.asarray(head_dim**-0.5 if scale is None else scale, jnp.float32)
    if temperature is not None:
        row_scale = row_scale / _checked_temperature(temperature, (batch, heads, length))
    return query, key, value, jnp.broadcast_to(row_scale, (batch, heads, length))


def _checked_temperature(temperature, shape: tuple[int, ...]) -> Float[Array, "..."]:
    t = jnp.asarray(temperature, jnp.float32)
    try:
        fits = jnp.broadcast_shapes(t.shape, shape) == shape
    except ValueError:
        fits = False
    if not fits:
        raise ValueError(f"temperature must broadcast to [B, H, T] = {shape}, got {t.shape}")
    # Values are known only outside jit; inside, a learned log-temperature is positive by design.
    if not isinstance(temperature, Tracer) and not (np.asarray(temperature) > 0).all():
        least = np.asarray(temperature).min()
        raise ValueError(f"temperature must be > 0, got a minimum of {least}")
    return t


def _check_shapes(query: Array, key: Array, value: Array, segment_ids: Array | None) -> None:
    for name, x in (("query", query), ("key", key), ("value", value)):
        if x.ndim != 4 or x.size == 0 or not jnp.issubdtype(x.dtype, jnp.floating):
            raise ValueError(
                f"{name} must be a non-empty floating [batch, length, heads, head_dim] array, "
                f"got {x.dtype} {x.shape}"
            )
    if key.shape != value.shape:
        raise ValueError(f"key and value must have one shape, got {key.shape} and {value.shape}")
    if (query.shape[0], query.shape[3]) != (key.shape[0], key.shape[3]):
        raise ValueError(
            f"query and key must share batch and head_dim, got {query.shape} and {key.shape}"
        )
    if query.shape[2] % key.shape[2]:
        raise ValueError(
            f"key heads must divide query heads, got {key.shape[2]} and {query.shape[2]}"
        )
    if segment_ids is None:
        return
    if segment_ids.shape != query.shape[:2] or key.shape[1] != query.shape[1]:
        raise ValueError(
            f"segment_ids must be [batch, length] = {query.shape[:2]} with as many keys as "
            f"queries, got {segment_ids.shape} and {key.shape[1]} keys"
        )
