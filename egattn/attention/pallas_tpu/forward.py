"""Forward kernel: output, logsumexp and entropy of each query."""

import functools

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu

from egattn.attention.pallas_tpu.common import LOWEST, Problem, Specs, dot, parallel, scores


def forward(p: Problem, q, k, v, scale, segments):
    """Output [B, H, D, T], and logsumexp and entropy [B, H, 2, T]."""
    row = pltpu.VMEM((1, p.block_q), jnp.float32)
    specs = Specs(p, lambda b, h, i, j: (b, h, i, jnp.minimum(j, p.last_keys(i))))
    heads = (p.batch, p.heads)
    return pl.pallas_call(
        functools.partial(_kernel, p),
        grid=(*heads, p.length // p.block_q, p.source // p.block_k),
        in_specs=[
            specs.query(p.head_dim),
            specs.key(p.head_dim),
            specs.key_across(p.head_dim),
            specs.rows(1),
            *specs.segments(segments),
        ],
        out_specs=[specs.rows(p.head_dim), specs.rows(2)],
        out_shape=[
            jax.ShapeDtypeStruct((*heads, p.head_dim, p.length), q.dtype),
            jax.ShapeDtypeStruct((*heads, 2, p.length), jnp.float32),
        ],
        scratch_shapes=[row, row, row, pltpu.VMEM((p.head_dim, p.block_q), jnp.float32)],
        compiler_params=parallel(3, 1),
        interpret=p.interpret,
    )(q, k, jnp.swapaxes(v, 2, 3), scale, *segments)


def _kernel(p: Problem, q_ref, k_ref, v_ref, scale_ref, *refs):
    """Adds keys of block j to queries of block i; the last one writes what came out."""
    segments, (out_ref, rows_ref, top_ref, total_ref, weighted_ref, acc_ref) = (
        refs[:-6],
        refs[-6:],
    )
    i, j = pl.program_id(2), pl.program_id(3)

    @pl.when(j == 0)
    def _():
        top_ref[...] = jnp.full_like(top_ref, LOWEST)
        for ref in (total_ref, weighted_ref, acc_ref):
            ref[...] = jnp.zeros_like(ref)

    @pl.when(p.seen(i, j))
    def _():
        _, s, mask = scores(p, q_ref[...], k_ref[...], scale_ref[...], segments, i, j)
        s = jnp.where(mask, s, LOWEST)
        top = top_ref[...]
        new_top = jnp.maximum(top, s.max(0, keepdims=True))
        x = jnp.where(mask, s - new_top, 0.0)
        e = jnp.where(mask, jnp.exp(x), 0.0)
        shift = top - new_top
        keep = jnp.exp(shift)
        total = total_ref[...]
        weighted = keep * (weighted_ref[...] + shift * total)
        weighted_ref[...] = weighted + (e * x).sum(0, keepdims=True)
        total_ref[...] = keep * total + e.sum(0, keepdims=True)
        v = v_ref[...]
        acc_ref[...] = keep * acc_ref[...] + dot(v, e.astype(v.dtype), (1, 0))
        top_ref[...] = new_top

    @pl.when(j == p.last_keys(i))
    def _():
        seen = total_ref[...] > 0
        total = jnp.where(seen, total_ref[...], 1.0)
        log_total = jnp.log(total)
        out_ref[...] = (acc_ref[...] / total).astype(out_ref.dtype)
        rows_ref[0:1] = jnp.where(seen, top_ref[...] + log_total, 0.0)
        rows_ref[1:2] = log_total - weighted_ref[...] / total
