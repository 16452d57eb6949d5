"""The backward kernel over query rows: gradients of the queries and of the rows' scale."""

import functools
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import mosaic_gpu as plgpu

from egattn.attention.pallas_gpu.common import (
    BY_ROW,
    LN2,
    ROWS,
    Problem,
    QueryCta,
    Tiles,
    accumulator,
    column,
    launch,
    load,
    tile,
    visible,
    wide,
)


@functools.partial(jax.jit, static_argnames=("problem", "tiles", "interpret"))
def backward_query(
    problem: Problem,
    tiles: Tiles,
    operands: Sequence[jax.Array],
    segments: Sequence[jax.Array] = (),
    interpret: Any = None,
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Computes the gradients that are sums over keys.

    With `x = log2 p` and a row's factor `c = row_scale * log2 e`, the gradient of a score is
    `ds = p (dp + beta x + gamma)`, `beta = -g ln 2`, `gamma = -delta - g E`, `delta = do . o`.

    Args:
      problem: The problem; lengths are multiples of 64.
      tiles: Block sizes.
      operands: Queries, keys, values, output, its cotangent, and in float32 [B, H, T] the rows'
        factor, logsumexp in base 2, entropy and its cotangent.
      segments: See `forward`.
      interpret: See `forward`.

    Returns:
      dq [B, T, H, D]; for `backward_key` the rows' (c, logsumexp, c beta, c gamma) [B, H, 4, T];
      the gradient of `row_scale` [B, H, T].
    """
    wgs, stages, slots, dim = tiles.workgroups, tiles.stages, tiles.slots, problem.head_dim
    mine = tile(wgs, slots, ROWS, dim, dtype=problem.dtype)
    ring = tile(stages, tiles.block, dim, dtype=problem.dtype)
    ready = plgpu.Barrier(num_barriers=stages)
    free = plgpu.Barrier(num_arrivals=wgs, num_barriers=stages)
    shared = _Shared(
        query=mine,
        out=mine,
        dout=mine,
        rows=plgpu.SMEM((wgs, slots, 5, ROWS), jnp.float32),
        key=ring,
        value=ring,
        rows_ready=plgpu.Barrier(num_arrivals=7, num_barriers=wgs * slots),
        key_ready=ready,
        value_ready=ready,
        key_free=free,
        value_free=free,
    )
    items = pl.cdiv(problem.length, ROWS * wgs) * problem.batch * problem.heads
    rows = (problem.batch, problem.heads, problem.length)
    outputs = (
        jax.ShapeDtypeStruct(operands[0].shape, problem.dtype),
        jax.ShapeDtypeStruct((*rows[:2], 4, rows[2]), jnp.float32),
        jax.ShapeDtypeStruct(rows, jnp.float32),
    )
    return launch(
        _BackwardQuery, problem, tiles, items, outputs, shared, (*operands, *segments), interpret
    )


class _Shared(NamedTuple):
    query: Any
    out: Any
    dout: Any
    rows: Any
    key: Any
    value: Any
    rows_ready: Any
    key_ready: Any
    value_ready: Any
    key_free: Any
    value_free: Any


class _BackwardQuery(QueryCta):
    def load_rows(self, item, slot):
        first, batch, head = self.tile(item)
        s, wg = self.shared, lax.axis_index("wg")
        mine = pl.ds(self.mine(first, self.problem.length), ROWS)
        ready = s.rows_ready.at[wg * self.tiles.slots + slot]
        q_ref, _, _, o_ref, do_ref, *rows = self.inputs[:9]
        for ref, target in ((q_ref, s.query), (o_ref, s.out), (do_ref, s.dout)):
            plgpu.copy_gmem_to_smem(ref.at[batch, mine, head], target.at[wg, slot], ready)
        for i, ref in enumerate(rows):
            plgpu.copy_gmem_to_smem(ref.at[batch, head, mine], s.rows.at[wg, slot, i], ready)

    def compute(self, item, slot, count):
        s, p, wg = self.shared, self.problem, lax.axis_index("wg")
        first, batch, head = self.tile(item)
        mine, steps = self.mine(first, p.length), self.steps(first)
        query, dout, rows = s.query.at[wg, slot], s.dout.at[wg, slot], s.rows.at[wg, slot]
        plgpu.barrier_wait(s.rows_ready.at[wg * self.tiles.slots + slot])
        c, lse, entropy, g = (load(rows.at[i], layout=BY_ROW) for i in range(4))
        delta = (wide(s.out.at[wg, slot]) * wide(dout)).sum(axis=1)
        beta, gamma = -LN2 * g, -delta - g * entropy
        segments = tuple(ref.at[batch] for ref in self.inputs[9:])

        def loop(dq_ref):
            step = functools.partial(
                self.step, dq_ref, query, dout, (c, lse, beta, gamma), segments, mine, count
            )
            clear, masked = p.clear_keys(mine, self.tiles.block, steps)
            lax.fori_loop(0, clear, functools.partial(step, masked=False), None)
            if masked:
                lax.fori_loop(clear, steps, functools.partial(step, masked=True), None)
            return dq_ref[...]

        u = pl.run_scoped(loop, accumulator((ROWS, p.head_dim)))
        rows[2] = c * beta
        rows[3] = c * gamma
        rows[4] = (u * wide(query)).sum(axis=1)
        query[...] = (u * column(LN2 * c, u.shape)).astype(p.dtype)
        self.store(query, rows, batch, head, pl.ds(mine, ROWS))
        return count + steps

    def step(self, dq_ref, query, dout, vectors, segments, mine, count, step, _, *, masked):
        """Adds one block of keys to `sum_j ds_j k_j`."""
        s = self.shared
        shape = (ROWS, self.tiles.block)
        slot = lax.rem(count + step, jnp.int32(self.tiles.stages))
        plgpu.barrier_wait(s.key_ready.at[slot])
        plgpu.barrier_wait(s.value_ready.at[slot])

        def score_gradient(s_ref, dp_ref):
            plgpu.wgmma(s_ref, query, s.key.at[slot].transpose((1, 0)))
            plgpu.wgmma(dp_ref, dout, s.value.at[slot].transpose((1, 0)))
            c, lse, beta, gamma = (column(x, shape) for x in vectors)
            x = plgpu.wgmma_accumulator_load(s_ref, wait_n=1) * c - lse
            p = jnp.exp2(x)
            key = step * self.tiles.block
            mask = visible(self.problem, shape, mine, key, segments, masked)
            if mask is not None:
                p = jnp.where(mask, p, 0.0)
            dp = dp_ref[...] + gamma
            if self.tiles.entropy:
                dp = dp + beta * x
            return (p * dp).astype(self.problem.dtype)

        acc = accumulator(shape)
        ds = pl.run_scoped(score_gradient, acc, acc)
        plgpu.barrier_arrive(s.value_free.at[slot])
        plgpu.wgmma(dq_ref, ds, s.key.at[slot])
        plgpu.wgmma_wait(0)
        plgpu.barrier_arrive(s.key_free.at[slot])

    def store(self, dq, rows, batch, head, mine):
        dq_ref, rows_ref, dscale_ref = self.outputs
        plgpu.commit_smem()
        plgpu.copy_smem_to_gmem(dq, dq_ref.at[batch, mine, head], commit_group=False)
        at = rows_ref.at[batch, head, :, mine]
        plgpu.copy_smem_to_gmem(rows.at[pl.ds(0, 4)], at, commit_group=False)
        at = dscale_ref.at[batch, head, mine]
        plgpu.copy_smem_to_gmem(rows.at[4], at, commit_group=False)
        plgpu.commit_smem_to_gmem_group()
