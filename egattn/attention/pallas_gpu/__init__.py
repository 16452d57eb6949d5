"""Attention with entropy in kernels of our own for NVIDIA Hopper GPUs (Pallas, Mosaic GPU).

The forward carries one accumulator more than flash attention, `sum_j e^(s_j - m) (s_j - m)`, and
the backward one multiply-add more per score; see `chunked` for the mathematics. All arithmetic on
scores is float32 in base 2; only operands of matrix products are rounded to the inputs' dtype.
Results do not depend on scheduling: no sum is atomic.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from egattn.attention.pallas_gpu.backward_key import backward_key
from egattn.attention.pallas_gpu.backward_query import backward_query
from egattn.attention.pallas_gpu.backward_short import backward_short
from egattn.attention.pallas_gpu.common import LOG2E, ROWS, Problem
from egattn.attention.pallas_gpu.forward import forward
from egattn.attention.pallas_gpu.tiles import LONGEST_BLOCK, KernelTiles, choose
from egattn.attention.pallas_gpu.tiles import without_entropy as without_entropy


def attend(
    query: Float[Array, "batch length heads head_dim"],
    key: Float[Array, "batch source kv_heads head_dim"],
    value: Float[Array, "batch source kv_heads head_dim"],
    row_scale: Float[Array, "batch heads length"],
    segment_ids: Int[Array, "batch length"] | None,
    *,
    causal: bool,
    tiles: Callable[[Problem], KernelTiles] = choose,
    interpret: Any = None,
) -> tuple[Float[Array, "batch length heads head_dim"], Float[Array, "batch heads length"]]:
    """As `reference.attend`, for bfloat16 and heads of 64 or 128, on a Hopper GPU.

    Args:
      query: Queries.
      key: Keys.
      value: Values.
      row_scale: Factors of the scores.
      segment_ids: Documents.
      causal: Whether a query sees only the past.
      tiles: Gives the kernels' block sizes.
      interpret: Pallas's interpreter, for a machine without such a GPU.
    """
    batch, length, heads, head_dim = query.shape
    source, kv_heads = key.shape[1:3]
    short_rows, short_keys = -length % ROWS, -source % ROWS
    problem = Problem(
        batch=batch,
        length=length + short_rows,
        source=source + short_keys,
        heads=heads,
        kv_heads=kv_heads,
        head_dim=head_dim,
        causal=causal,
        offset=source - length,
        keys=source,
        dtype=query.dtype,
    )
    segments = ()
    if segment_ids is not None:
        # Read by plain loads, which unlike copies of tiles do not stop at the end: whole blocks.
        short = -length % LONGEST_BLOCK
        ids = jnp.pad(segment_ids, ((0, 0), (0, short)), constant_values=-1)
        # Padding must not see padding.
        segments = (jnp.where(ids < 0, -1, ids), jnp.where(ids < 0, -2, ids))
    q = _pad(query, short_rows, 1)
    k, v = (_pad(x, short_keys, 1) for x in (key, value))
    coefficient = _pad(row_scale * LOG2E, short_rows, 2)
    out, entropy = _attend(problem, tiles(problem), interpret, q, k, v, coefficient, segments)
    return out[:, :length], entropy[..., :length]


def _pad(x: Array, rows: int, axis: int) -> Array:
    if not rows:
        return x
    return jnp.pad(x, [(0, rows if i == axis else 0) for i in range(x.ndim)])


def _forward_only(problem: Problem, tiles: KernelTiles, interpret, *inputs):
    return _attend_fwd(problem, tiles, interpret, *inputs)[0]


def _attend_fwd(problem, tiles, interpret, q, k, v, coefficient, segments):
    inputs = (q, k, v, coefficient)
    out, lse, entropy = forward(problem, tiles.forward, inputs, segments, interpret)
    return (out, entropy), (q, k, v, coefficient, segments, out, lse, entropy)


def _attend_bwd(problem, tiles, interpret, residuals, cotangents):
    q, k, v, coefficient, segments, out, lse, entropy = residuals
    dout, dentropy = cotangents
    dout = dout.astype(q.dtype)
    rows = (coefficient, lse, entropy, dentropy)
    if tiles.short is not None:
        operands = (q, k, v, dout, *rows)
        dq, dk, dv, dscale = backward_short(problem, tiles.short, operands, segments, interpret)
    else:
        operands = (q, k, v, out, dout, *rows)
        dq, packed, dscale = backward_query(problem, tiles.query, operands, segments, interpret)
        operands = (q, k, v, dout, packed)
        dk, dv = backward_key(problem, tiles.key, operands, segments, interpret)
    # The kernels give the gradient of row_scale; coefficient is that times log2 e.
    none = tuple(np.zeros(x.shape, jax.dtypes.float0) for x in segments)
    return dq, dk, dv, dscale / LOG2E, none


_attend = jax.custom_vjp(_forward_only, nondiff_argnums=(0, 1, 2))
_attend.defvjp(_attend_fwd, _attend_bwd)
