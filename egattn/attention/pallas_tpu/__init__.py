"""Attention with entropy in kernels of our own for TPUs (Pallas, Mosaic TPU).

The mathematics are those of `chunked`. All kernels form a block of scores transposed, [keys,
queries]: then what belongs to a query (maximum, logsumexp, entropy, scale) lies along the lanes
of a vector register, is kept as [1, queries] without padding, and reductions over keys run down
the sublanes. Products need no transposition in the kernel; those of operands whose two axes are
wanted in either order get both from outside, where the layout changes anyway.

The forward's grid is (batch, head, query block, key block), as is that of the kernel for dq; the
one for dk and dv has (batch, key head, key block, head of the group, query block). Blocks above
a causal diagonal are neither loaded nor computed. No sum depends on scheduling.
"""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import pallas as pl
from jaxtyping import Array, Float, Int

from egattn.attention.pallas_tpu.backward import backward_key, backward_query
from egattn.attention.pallas_tpu.common import BLOCKS, Problem
from egattn.attention.pallas_tpu.forward import forward


def attend(
    query: Float[Array, "batch length heads head_dim"],
    key: Float[Array, "batch source kv_heads head_dim"],
    value: Float[Array, "batch source kv_heads head_dim"],
    row_scale: Float[Array, "batch heads length"],
    segment_ids: Int[Array, "batch length"] | None,
    *,
    causal: bool,
    interpret: Any = False,
) -> tuple[Float[Array, "batch length heads head_dim"], Float[Array, "batch heads length"]]:
    """As `reference.attend`, on a TPU."""
    batch, length, heads, head_dim = query.shape
    source, kv_heads = key.shape[1:3]
    block_q, padded_q = _cut(length)
    block_k, padded_k = _cut(source)
    problem = Problem(
        batch=batch,
        length=padded_q,
        source=padded_k,
        heads=heads,
        kv_heads=kv_heads,
        head_dim=head_dim,
        causal=causal,
        offset=source - length,
        keys=source,
        block_q=block_q,
        block_k=block_k,
        interpret=interpret,
    )
    q, k, v = (
        _pad(jnp.moveaxis(x, 1, 2), size, 2)
        for x, size in ((query, padded_q), (key, padded_k), (value, padded_k))
    )
    segments = ()
    if segment_ids is not None:
        ids = jnp.pad(segment_ids, ((0, 0), (0, padded_q - length)), constant_values=-1)
        # Padding must not see padding.
        segments = (jnp.where(ids < 0, -1, ids)[:, None], jnp.where(ids < 0, -2, ids)[..., None])
    scale = _pad(row_scale, padded_q, 2)[:, :, None]
    out, entropy = _attend(problem, q, k, v, scale, segments)
    return jnp.moveaxis(out, 3, 1)[:, :length], entropy[..., :length]


def _cut(length: int) -> tuple[int, int]:
    """The block size, and the length that it divides."""
    padded = pl.cdiv(length, BLOCKS[-1]) * BLOCKS[-1]
    return next(block for block in BLOCKS if padded % block == 0), padded


def _pad(x: Array, size: int, axis: int) -> Array:
    widths = [(0, size - n if i == axis else 0) for i, n in enumerate(x.shape)]
    return jnp.pad(x, widths)


def _forward_only(p: Problem, *inputs):
    return _attend_fwd(p, *inputs)[0]


def _attend_fwd(p: Problem, q, k, v, scale, segments):
    """q [B, H, T, D], k and v [B, K, S, D], scale [B, H, 1, T] -> out [B, H, D, T], entropy."""
    out, rows = forward(p, q, k, v, scale, segments)
    return (out, rows[:, :, 1]), (q, k, v, scale, segments, out, rows)


def _attend_bwd(p: Problem, residuals, cotangents):
    q, k, v, scale, segments, out, rows = residuals
    dout, dentropy = cotangents
    delta = jnp.sum(out.astype(jnp.float32) * dout.astype(jnp.float32), 2, keepdims=True)
    # One tile of eight sublanes: scale, logsumexp, entropy, its cotangent, delta.
    unused = jnp.zeros((*scale.shape[:2], 3, scale.shape[3]), jnp.float32)
    rows = jnp.concatenate([scale, rows, dentropy[:, :, None], delta, unused], 2)
    do = jnp.swapaxes(dout, 2, 3).astype(q.dtype)
    dq, dscale = backward_query(p, q, k, v, do, rows, segments)
    dk, dv = backward_key(p, q, k, v, do, rows, segments)
    none = tuple(np.zeros(x.shape, jax.dtypes.float0) for x in segments)
    return jnp.swapaxes(dq, 2, 3), dk, dv, dscale, none


_attend = jax.custom_vjp(_forward_only, nondiff_argnums=(0,))
_attend.defvjp(_attend_fwd, _attend_bwd)
