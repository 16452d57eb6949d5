"""Backward kernels: one for queries and scales, one for keys and values."""

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu

from egattn.attention.pallas_tpu.common import Problem, Specs, dot, parallel, scores


def score_gradient(p: Problem, q, k, v, do, rows, segments, i, j):
    """Unscaled scores, weights and gradients of the scaled scores, all [keys, queries]."""
    scale, logsumexp, entropy, dentropy, delta = (rows[n : n + 1] for n in range(5))
    raw, s, mask = scores(p, q, k, scale, segments, i, j)
    # A masked score may exceed the logsumexp by far: keep it out of exp and of 0 * log p.
    log_p = jnp.where(mask, s - logsumexp, 0.0)
    weights = jnp.where(mask, jnp.exp(log_p), 0.0)
    dp = dot(v, do, (1, 1)) - delta
    return raw, weights, weights * (dp - dentropy * (log_p + entropy))


def backward_query(p: Problem, q, k, v, do, rows, segments):
    """dq [B, H, D, T] and the gradient of the scale [B, H, 1, T]."""

    def kernel(q_ref, k_ref, k_across_ref, v_ref, do_ref, rows_ref, *refs):
        segments, (dq_ref, dscale_ref, acc_ref, dscale_acc_ref) = refs[:-4], refs[-4:]
        i, j = pl.program_id(2), pl.program_id(3)

        @pl.when(j == 0)
        def _():
            acc_ref[...] = jnp.zeros_like(acc_ref)
            dscale_acc_ref[...] = jnp.zeros_like(dscale_acc_ref)

        @pl.when(p.seen(i, j))
        def _():
            q, k, v, do, rows = (ref[...] for ref in (q_ref, k_ref, v_ref, do_ref, rows_ref))
            raw, _, ds = score_gradient(p, q, k, v, do, rows, segments, i, j)
            dscale_acc_ref[...] += (ds * raw).sum(0, keepdims=True)
            acc_ref[...] += dot(k_across_ref[...], ds.astype(k.dtype), (1, 0))

        @pl.when(j == p.last_keys(i))
        def _():
            dq_ref[...] = (acc_ref[...] * rows_ref[0:1]).astype(dq_ref.dtype)
            dscale_ref[...] = dscale_acc_ref[...]

    specs = Specs(p, lambda b, h, i, j: (b, h, i, jnp.minimum(j, p.last_keys(i))))
    heads, dim = (p.batch, p.heads), p.head_dim
    return pl.pallas_call(
        kernel,
        grid=(*heads, p.length // p.block_q, p.source // p.block_k),
        in_specs=[
            specs.query(dim),
            specs.key(dim),
            specs.key_across(dim),
            specs.key(dim),
            specs.query(dim),
            specs.rows(8),
            *specs.segments(segments),
        ],
        out_specs=[specs.rows(dim), specs.rows(1)],
        out_shape=[
            jax.ShapeDtypeStruct((*heads, dim, p.length), q.dtype),
            jax.ShapeDtypeStruct((*heads, 1, p.length), jnp.float32),
        ],
        scratch_shapes=[
            pltpu.VMEM((dim, p.block_q), jnp.float32),
            pltpu.VMEM((1, p.block_q), jnp.float32),
        ],
        compiler_params=parallel(3, 1),
        interpret=p.interpret,
    )(q, k, jnp.swapaxes(k, 2, 3), v, do, rows, *segments)


def backward_key(p: Problem, q, k, v, do, rows, segments):
    """dk and dv [B, K, S, D]."""

    def kernel(q_ref, k_ref, v_ref, do_ref, rows_ref, *refs):
        segments, (dk_ref, dv_ref, dk_acc_ref, dv_acc_ref) = refs[:-4], refs[-4:]
        j, g, i = pl.program_id(2), pl.program_id(3), pl.program_id(4)

        @pl.when((g == 0) & (i == 0))
        def _():
            dk_acc_ref[...] = jnp.zeros_like(dk_acc_ref)
            dv_acc_ref[...] = jnp.zeros_like(dv_acc_ref)

        @pl.when(p.seen(i, j))
        def _():
            q, k, v, do, rows = (ref[...] for ref in (q_ref, k_ref, v_ref, do_ref, rows_ref))
            _, weights, ds = score_gradient(p, q, k, v, do, rows, segments, i, j)
            dv_acc_ref[...] += dot(weights.astype(do.dtype), do, (1, 0))
            dk_acc_ref[...] += dot((ds * rows[0:1]).astype(q.dtype), q, (1, 0))

        @pl.when((g == p.group - 1) & (i == p.length // p.block_q - 1))
        def _():
            dk_ref[...] = dk_acc_ref[...].astype(dk_ref.dtype)
            dv_ref[...] = dv_acc_ref[...].astype(dv_ref.dtype)

    def locate(b, h, j, g, i):
        return b, h * p.group + g, jnp.maximum(i, p.first_queries(j)), j

    specs, dim = Specs(p, locate), p.head_dim
    grid = (p.source // p.block_k, p.group, p.length // p.block_q)
    accumulator = pltpu.VMEM((p.block_k, dim), jnp.float32)
    return pl.pallas_call(
        kernel,
        grid=(p.batch, p.kv_heads, *grid),
        in_specs=[
            specs.query(dim),
            specs.key(dim),
            specs.key(dim),
            specs.query(dim),
            specs.rows(8),
            *specs.segments(segments),
        ],
        out_specs=[specs.key(dim), specs.key(dim)],
        out_shape=[jax.ShapeDtypeStruct(k.shape, k.dtype)] * 2,
        scratch_shapes=[accumulator, accumulator],
        compiler_params=parallel(3, 2),
        interpret=p.interpret,
    )(q, k, v, do, rows, *segments)
