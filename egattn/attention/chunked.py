"""Attention with entropy in linear memory: online softmax over key blocks, in plain JAX.

The forward keeps four running accumulators per query row, all relative to the running maximum m:
`l = sum e^(s-m)`, `a = sum e^(s-m) (s-m)`, `o = sum e^(s-m) v` and m itself. Then
`E = log l - a / l`. The backward recomputes the scores block by block from the saved logsumexp
and entropy: with cotangents do and g of output and entropy, and `delta = do . o`,

    ds_j = p_j [ (do . v_j - delta) - g (log p_j + E) ],

one multiply-add more per score than attention without entropy.
"""

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from egattn.attention.mask import visible

# Small enough that a block of scores stays in cache, large enough for the matrix units.
_QUERY_BLOCK = 256
_KEY_BLOCK = 512


class _Blocks(NamedTuple):
    """How T queries and S keys are cut: `queries` blocks of `query_size`, likewise keys."""

    length: int
    source: int
    queries: int
    query_size: int
    keys: int
    key_size: int
    causal: bool

    @classmethod
    def of(cls, length: int, source: int, causal: bool) -> "_Blocks":
        queries, keys = -(-length // _QUERY_BLOCK), -(-source // _KEY_BLOCK)
        return cls(length, source, queries, -(-length // queries), keys, -(-source // keys), causal)

    def keys_seen(self, i) -> Any:
        """Number of key blocks that query block i can see: a causal row skips the rest."""
        if not self.causal or self.keys == 1:
            return self.keys
        last = (i + 1) * self.query_size - 1 + self.source - self.length
        return jnp.clip(last // self.key_size + 1, 0, self.keys)

    def first_query(self, j) -> Any:
        """First query block that sees key block j."""
        if not self.causal or self.queries == 1:
            return 0
        first = j * self.key_size - (self.source - self.length)
        return jnp.clip(first // self.query_size, 0, self.queries)


def attend(
    query: Float[Array, "batch length heads head_dim"],
    key: Float[Array, "batch source kv_heads head_dim"],
    value: Float[Array, "batch source kv_heads head_dim"],
    row_scale: Float[Array, "batch heads length"],
    segment_ids: Int[Array, "batch length"] | None,
    *,
    causal: bool,
) -> tuple[Float[Array, "batch length heads head_dim"], Float[Array, "batch heads length"]]:
    """As `reference.attend`, without any [T, S] array in forward or backward."""
    batch, length, heads, head_dim = query.shape
    kv_heads = key.shape[2]
    blocks = _Blocks.of(length, key.shape[1], causal)
    # Heads before positions, so that every block product is one batched matrix product.
    q = jnp.moveaxis(query.reshape(batch, length, kv_heads, -1, head_dim), 1, 3)
    r = row_scale.reshape(batch, kv_heads, -1, length)
    k, v = jnp.moveaxis(key, 1, 2), jnp.moveaxis(value, 1, 2)
    out, entropy = _attend(blocks, q, k, v, r, segment_ids)
    out = jnp.moveaxis(out, 3, 1).reshape(batch, length, heads, head_dim)
    return out, entropy.reshape(batch, heads, length)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _attend(blocks: _Blocks, q, k, v, r, segments):
    """q [B, K, G, T, D]; k, v [B, K, S, D]; r [B, K, G, T] -> output like q, entropy like r."""
    out, entropy, _ = _forward(blocks, q, k, v, r, segments)
    return out, entropy


def _attend_fwd(blocks, q, k, v, r, segments):
    out, entropy, logsumexp = _forward(blocks, q, k, v, r, segments)
    return (out, entropy), (q, k, v, r, segments, out, entropy, logsumexp)


def _attend_bwd(blocks, residuals, cotangents):
    q, k, v, r, segments, out, entropy, logsumexp = residuals
    dout, dentropy = cotangents
    delta = jnp.sum(dout.astype(jnp.float32) * out.astype(jnp.float32), -1)
    rows = (q, r, dout.astype(q.dtype), logsumexp, entropy, delta, dentropy)
    du, dk, dv = _backward(blocks, rows, k, v, segments)
    # du = sum_j ds_j k_j; the scores are s_j = r q . k_j.
    dq = (du * r[..., None]).astype(q.dtype)
    dr = jnp.sum(du * q.astype(jnp.float32), -1)
    dsegments = None if segments is None else np.zeros(segments.shape, jax.dtypes.float0)
    return dq, dk.astype(k.dtype), dv.astype(v.dtype), dr, dsegments


_attend.defvjp(_attend_fwd, _attend_bwd)


def _forward(blocks: _Blocks, q, k, v, r, segments):
    q, r = (_split(x, 3, blocks.queries, blocks.query_size) for x in (q, r))
    k, v = (_split(x, 2, blocks.keys, blocks.key_size) for x in (k, v))

    def query_block(i):
        def key_block(j, carry):
            row_max, total, weighted, out = carry
            s, mask = _scores(blocks, q[i], r[i], k[j], segments, i, j)
            s = jnp.where(mask, s, -jnp.inf)
            new_max = jnp.maximum(row_max, s.max(-1))
            base = jnp.where(new_max == -jnp.inf, 0.0, new_max)
            shift = jnp.where(row_max == -jnp.inf, 0.0, row_max - base)
            keep = jnp.exp(shift)
            x = s - base[..., None]
            e = jnp.exp(x)
            weighted = keep * (weighted + shift * total) + jnp.where(mask, e * x, 0.0).sum(-1)
            total = keep * total + e.sum(-1)
            out = keep[..., None] * out + _dot("bkgts,bksd->bkgtd", e.astype(v.dtype), v[j])
            return new_max, total, weighted, out

        row = jnp.zeros(r.shape[1:], jnp.float32)
        init = (row - jnp.inf, row, row, jnp.zeros(q.shape[1:], jnp.float32))
        row_max, total, weighted, out = _loop(0, blocks.keys_seen(i), key_block, init)
        seen = row_max != -jnp.inf
        total = jnp.where(seen, total, 1.0)
        logsumexp = jnp.log(total) + jnp.where(seen, row_max, 0.0)
        entropy = jnp.log(total) - weighted / total
        return (out / total[..., None]).astype(q.dtype), entropy, logsumexp

    results = _map(query_block, blocks.queries)
    return tuple(_join(x, 3, blocks.length) for x in results)


def _backward(blocks: _Blocks, rows, k, v, segments):
    """Returns (sum_j ds_j k_j, dk, dv) in float32."""
    rows = tuple(_split(x, 3, blocks.queries, blocks.query_size) for x in rows)
    q, r, dout, logsumexp, entropy, delta, dentropy = rows
    k, v = (_split(x, 2, blocks.keys, blocks.key_size) for x in (k, v))

    def key_block(j, carry):
        du, dks, dvs = carry

        def query_block(i, carry):
            du, dk, dv = carry
            s, mask = _scores(blocks, q[i], r[i], k[j], segments, i, j)
            log_p = s - logsumexp[i][..., None]
            p = jnp.where(mask, jnp.exp(log_p), 0.0)
            dp = _dot("bkgtd,bksd->bkgts", dout[i], v[j]) - delta[i][..., None]
            # A masked score may exceed the logsumexp by far: keep it out of 0 * log p.
            log_p = jnp.where(mask, log_p, 0.0)
            ds = p * (dp - dentropy[i][..., None] * (log_p + entropy[i][..., None]))
            scaled = (ds * r[i][..., None]).astype(q.dtype)
            du = du.at[i].add(_dot("bkgts,bksd->bkgtd", ds.astype(k.dtype), k[j]))
            dk += _dot("bkgts,bkgtd->bksd", scaled, q[i])
            dv += _dot("bkgts,bkgtd->bksd", p.astype(v.dtype), dout[i])
            return du, dk, dv

        zero = jnp.zeros(k.shape[1:], jnp.float32)
        first = blocks.first_query(j)
        du, dk, dv = _loop(first, blocks.queries, query_block, (du, zero, zero))
        return du, dks.at[j].set(dk), dvs.at[j].set(dv)

    zeros = (jnp.zeros(x.shape, jnp.float32) for x in (q, k, v))
    du, dk, dv = _loop(0, blocks.keys, key_block, tuple(zeros))
    return _join(du, 3, blocks.length), _join(dk, 2, blocks.source), _join(dv, 2, blocks.source)


def _scores(blocks: _Blocks, q, r, k, segments, i, j):
    """Scores [B, K, G, t, s] of query block i against key block j, and which of them count."""
    s = _dot("bkgtd,bksd->bkgts", q, k) * r[..., None]
    query_positions = i * blocks.query_size + jnp.arange(blocks.query_size)
    key_positions = j * blocks.key_size + jnp.arange(blocks.key_size)
    query_segments = key_segments = None
    if segments is not None:
        query_segments = jnp.take(segments, query_positions, axis=1, fill_value=-1)
        key_segments = jnp.take(segments, key_positions, axis=1, fill_value=-1)
    mask = visible(
        query_positions,
        key_positions,
        query_segments,
        key_segments,
        causal=blocks.causal,
        offset=blocks.source - blocks.length,
    )
    mask &= key_positions < blocks.source
    return s, mask[:, :, None]


def _dot(subscripts: str, x, y):
    # TF32 products would lose ten bits of a float32 input; bfloat16 ones are exact either way.
    return jnp.einsum(
        subscripts,
        x,
        y,
        precision=jax.lax.Precision.HIGHEST,
        preferred_element_type=jnp.float32,
    )


def _loop(lower, upper, body, init):
    """`fori_loop`, without the loop when it would run exactly once."""
    if isinstance(upper, int) and isinstance(lower, int) and upper - lower == 1:
        return body(lower, init)
    return jax.lax.fori_loop(lower, upper, body, init)


def _map(body, count: int):
    if count == 1:
        return jax.tree.map(lambda x: x[None], body(0))
    return jax.lax.map(body, jnp.arange(count))


def _split(x, axis: int, count: int, size: int):
    """Cuts an axis into `count` leading blocks of `size`, zero-padded at the end."""
    pad = [(0, 0)] * x.ndim
    pad[axis] = (0, count * size - x.shape[axis])
    x = jnp.pad(x, pad)
    x = x.reshape(*x.shape[:axis], count, size, *x.shape[axis + 1 :])
    return jnp.moveaxis(x, axis, 0)


def _join(x, axis: int, length: int):
    """Undoes `_split`."""
    x = jnp.moveaxis(x, 0, axis)
    x = x.reshape(*x.shape[:axis], -1, *x.shape[axis + 2 :])
    return jax.lax.slice_in_dim(x, 0, length, axis=axis)
