"""Attention with entropy in linear memory: online softmax over key blocks, in plain JAX.

The forward keeps four running accumulators per query row, all relative to the running maximum m:
`l = sum e^(s-m)`, `a = sum e^(s-m) (s-m)`, `o = sum e^(s-m) v` and m itself. Then
`E = log l - a / l`. The backward recomputes the scores block by block from the saved logsumexp
and entropy: with cotangents do and g of output and entropy, and `delta = do . o`,

    ds_j = p_j [ (do . v_j - delta) - g (log p_j + E) ],

one multiply-add more per score than attention without entropy.

`egattn.attention.ring` calls both passes on the keys of one device after the other.
"""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from egattn.attention.mask import visible
from egattn.attention.sums import row_sum

# Small enough that a block of scores stays in cache, large enough for the matrix units.
_QUERY_BLOCK = 256
_KEY_BLOCK = 512


class Blocks(NamedTuple):
    """How T queries and S keys are cut: `queries` blocks of `query_size`, likewise keys.

    Query heads that share a key head are rows of one block, so that every product of a block is
    one batched matrix product: R = group x query_size rows.
    """

    group: int
    length: int
    source: int
    queries: int
    query_size: int
    keys: int
    key_size: int
    causal: bool

    @classmethod
    def of(cls, group: int, length: int, source: int, causal: bool) -> "Blocks":
        """Cuts T = `length` queries and S = `source` keys."""
        queries, keys = -(-length // _QUERY_BLOCK), -(-source // _KEY_BLOCK)
        query_size, key_size = -(-length // queries), -(-source // keys)
        return cls(group, length, source, queries, query_size, keys, key_size, causal)

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
    q, k, v, r = arrange(query, key, value, row_scale)
    blocks = Blocks.of(q.shape[2], q.shape[3], k.shape[2], causal)
    return restore(*_attend(blocks, q, k, v, r, segment_ids))


def arrange(query, key, value, row_scale):
    """q [B, K, G, T, D]; k, v [B, K, S, D]; r [B, K, G, T], of arguments of `attend`."""
    batch, length, _, head_dim = query.shape
    if query.dtype == jnp.float32:
        # Into the query, where it costs nothing. Narrower queries would lose digits to it: their
        # scores are scaled instead.
        query = query * jnp.swapaxes(row_scale, 1, 2)[..., None]
        row_scale = jnp.ones_like(row_scale)
    kv_heads = key.shape[2]
    q = jnp.moveaxis(query.reshape(batch, length, kv_heads, -1, head_dim), 1, 3)
    r = row_scale.reshape(batch, kv_heads, -1, length)
    return q, jnp.moveaxis(key, 1, 2), jnp.moveaxis(value, 1, 2), r


def restore(out, entropy):
    """Output [B, T, H, D] and entropy [B, H, T] of those in the layout of `arrange`."""
    batch, _, _, length, head_dim = out.shape
    out = jnp.moveaxis(out, 3, 1).reshape(batch, length, -1, head_dim)
    return out, entropy.reshape(batch, -1, length)


def _forward_only(blocks: Blocks, q, k, v, r, segments):
    """q [B, K, G, T, D]; k, v [B, K, S, D]; r [B, K, G, T] -> output like q, entropy like r."""
    (out, entropy), _ = _attend_fwd(blocks, q, k, v, r, segments)
    return out, entropy


def _attend_fwd(blocks, q, k, v, r, segments):
    out, entropy, logsumexp = forward(blocks, q, k, v, r, (segments, segments))
    out = out.astype(q.dtype)
    return (out, entropy), (q, k, v, r, segments, out, entropy, logsumexp)


def _attend_bwd(blocks, residuals, cotangents):
    return cotangents_of_inputs(functools.partial(backward, blocks), residuals, cotangents)


_attend = jax.custom_vjp(_forward_only, nondiff_argnums=(0,))
_attend.defvjp(_attend_fwd, _attend_bwd)


def cotangents_of_inputs(backward: Callable, residuals, cotangents):
    """Cotangents of q, k, v, r and segments; `backward` has the last arguments of this module's."""
    q, k, v, r, segments, out, entropy, logsumexp = residuals
    dout, dentropy = cotangents
    delta = jnp.sum(dout.astype(jnp.float32) * out.astype(jnp.float32), -1)
    rows = (q, r, dout.astype(q.dtype), logsumexp, entropy, delta, dentropy)
    du, dk, dv = backward(rows, k, v, (segments, segments))
    # du = sum_j ds_j k_j; the scores are s_j = r q . k_j.
    dq = (du * r[..., None]).astype(q.dtype)
    dr = jnp.sum(du * q.astype(jnp.float32), -1)
    dsegments = None if segments is None else np.zeros(segments.shape, jax.dtypes.float0)
    return dq, dk.astype(k.dtype), dv.astype(v.dtype), dr, dsegments


def forward(blocks: Blocks, q, k, v, r, segments):
    """Attention to some keys.

    Args:
      blocks: How queries and keys are cut.
      q: Queries [B, K, G, T, D].
      k: Keys [B, K, S, D].
      v: Values [B, K, S, D].
      r: Factors of the scores [B, K, G, T].
      segments: Segments of queries [B, T] and of keys [B, S], or two None.

    Returns:
      Output like q, entropy and logsumexp like r, all float32. A row that sees no key has output 0,
      entropy 0 and logsumexp -inf.
    """
    q, r = (_split_rows(blocks, x) for x in (q, r))
    k, v = (_split_keys(blocks, x) for x in (k, v))

    def query_block(i):
        def key_block(j, carry):
            row_max, total, weighted, out = carry
            s, mask = _scores(blocks, q[i], r[i], k[j], segments, i, j)
            new_max = jnp.maximum(row_max, jnp.where(mask, s, -jnp.inf).max(-1))
            base = jnp.where(new_max == -jnp.inf, 0.0, new_max)
            shift = jnp.where(row_max == -jnp.inf, 0.0, row_max - base)
            keep = jnp.exp(shift)
            x = jnp.where(mask, s - base[..., None], 0.0)
            e = jnp.where(mask, jnp.exp(x), 0.0)
            weighted = keep * (weighted + shift * total) + row_sum(e * x)
            total = keep * total + row_sum(e)
            out = keep[..., None] * out + _dot("bkrs,bksd->bkrd", e.astype(v.dtype), v[j])
            return new_max, total, weighted, out

        row = jnp.zeros(r.shape[1:], jnp.float32)
        init = (row - jnp.inf, row, row, jnp.zeros(q.shape[1:], jnp.float32))
        row_max, total, weighted, out = _loop(0, blocks.keys_seen(i), key_block, init)
        seen = row_max != -jnp.inf
        total = jnp.where(seen, total, 1.0)
        entropy = jnp.log(total) - weighted / total
        return out / total[..., None], entropy, jnp.log(total) + row_max

    return tuple(_join_rows(blocks, x) for x in _map(query_block, blocks.queries))


def backward(blocks: Blocks, rows, k, v, segments):
    """What some keys add to the gradients: (sum_j ds_j k_j, dk, dv) in float32.

    Args:
      blocks: How queries and keys are cut.
      rows: q, r, cotangent of the output, logsumexp, entropy, delta and cotangent of the entropy,
        each [B, K, G, T, ...]; logsumexp, entropy and delta are those over all keys.
      k: Keys [B, K, S, D].
      v: Values [B, K, S, D].
      segments: Segments of queries [B, T] and of keys [B, S], or two None.
    """
    rows = tuple(_split_rows(blocks, x) for x in rows)
    q, r, dout, logsumexp, entropy, delta, dentropy = rows
    k, v = (_split_keys(blocks, x) for x in (k, v))

    def key_block(j, carry):
        du, dks, dvs = carry

        def query_block(i, carry):
            du, dk, dv = carry
            s, mask = _scores(blocks, q[i], r[i], k[j], segments, i, j)
            # A masked score may exceed the logsumexp by far: keep it out of exp and of 0 * log p.
            log_p = jnp.where(mask, s - logsumexp[i][..., None], 0.0)
            p = jnp.where(mask, jnp.exp(log_p), 0.0)
            dp = _dot("bkrd,bksd->bkrs", dout[i], v[j]) - delta[i][..., None]
            ds = p * (dp - dentropy[i][..., None] * (log_p + entropy[i][..., None]))
            scaled = (ds * r[i][..., None]).astype(q.dtype)
            du = du.at[i].add(_dot("bkrs,bksd->bkrd", ds.astype(k.dtype), k[j]))
            dk += _dot("bkrs,bkrd->bksd", scaled, q[i])
            dv += _dot("bkrs,bkrd->bksd", p.astype(v.dtype), dout[i])
            return du, dk, dv

        zero = jnp.zeros(k.shape[1:], jnp.float32)
        first = blocks.first_query(j)
        du, dk, dv = _loop(first, blocks.queries, query_block, (du, zero, zero))
        return du, dks.at[j].set(dk), dvs.at[j].set(dv)

    zeros = tuple(jnp.zeros(x.shape, jnp.float32) for x in (q, k, v))
    du, dk, dv = _loop(0, blocks.keys, key_block, zeros)
    return _join_rows(blocks, du), _join_keys(blocks, dk), _join_keys(blocks, dv)


def _scores(blocks: Blocks, q, r, k, segments, i, j):
    """Scores [B, K, R, s] of query block i against key block j, and which of them count."""
    s = _dot("bkrd,bksd->bkrs", q, k) * r[..., None]
    query_positions = i * blocks.query_size + jnp.arange(blocks.query_size)
    query_positions = jnp.tile(query_positions, blocks.group)
    key_positions = j * blocks.key_size + jnp.arange(blocks.key_size)
    query_segments, key_segments = segments
    if query_segments is not None:
        query_segments = jnp.take(query_segments, query_positions, axis=1, fill_value=-1)
        key_segments = jnp.take(key_segments, key_positions, axis=1, fill_value=-1)
    mask = visible(
        query_positions,
        key_positions,
        query_segments,
        key_segments,
        causal=blocks.causal,
        offset=blocks.source - blocks.length,
    )
    return s, mask & (key_positions < blocks.source)


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


def _split_rows(blocks: Blocks, x):
    """[B, K, G, T, ...] -> [queries, B, K, R, ...], zero-padded at the end of T."""
    batch, kv_heads, group, length, *rest = x.shape
    pad = blocks.queries * blocks.query_size - length
    x = jnp.pad(x, [(0, 0)] * 3 + [(0, pad)] + [(0, 0)] * len(rest))
    x = x.reshape(batch, kv_heads, group, blocks.queries, blocks.query_size, *rest)
    x = jnp.moveaxis(x, 3, 0)
    return x.reshape(blocks.queries, batch, kv_heads, group * blocks.query_size, *rest)


def _join_rows(blocks: Blocks, x):
    """Undoes `_split_rows`."""
    queries, batch, kv_heads, _, *rest = x.shape
    x = x.reshape(queries, batch, kv_heads, blocks.group, blocks.query_size, *rest)
    x = jnp.moveaxis(x, 0, 3)
    x = x.reshape(batch, kv_heads, blocks.group, queries * blocks.query_size, *rest)
    return x[:, :, :, : blocks.length]


def _split_keys(blocks: Blocks, x):
    """[B, K, S, D] -> [keys, B, K, s, D], zero-padded at the end of S."""
    batch, kv_heads, source, width = x.shape
    pad = blocks.keys * blocks.key_size - source
    x = jnp.pad(x, [(0, 0), (0, 0), (0, pad), (0, 0)])
    return jnp.moveaxis(x.reshape(batch, kv_heads, blocks.keys, blocks.key_size, width), 2, 0)


def _join_keys(blocks: Blocks, x):
    """Undoes `_split_keys`."""
    keys, batch, kv_heads, size, width = x.shape
    x = jnp.moveaxis(x, 0, 2).reshape(batch, kv_heads, keys * size, width)
    return x[:, :, : blocks.source]
