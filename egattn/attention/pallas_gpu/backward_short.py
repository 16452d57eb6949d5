"""The backward kernel for sequences whose whole score matrix fits on chip: T <= 128.

One thread block does a head in one go: it reads queries, keys, values and cotangent once and
needs neither the output nor a second kernel, for a row's `delta = sum_j p_j dp_j` is at hand.
"""

import functools
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import mosaic_gpu as plgpu

from egattn.attention.pallas_gpu.backward_key import score_gradient
from egattn.attention.pallas_gpu.common import (
    BY_ROW,
    LN2,
    ROWS,
    Cta,
    Problem,
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
def backward_short(
    problem: Problem,
    tiles: Tiles,
    operands: Sequence[jax.Array],
    segments: Sequence[jax.Array] = (),
    interpret: Any = None,
) -> tuple[jax.Array, jax.Array, jax.Array, jax.Array]:
    """Computes all gradients of a self-attention of at most 128 positions, without groups.

    Args:
      problem: The problem; T = S is 64 or 128, H = K.
      tiles: Two warpgroups, blocks of 64.
      operands: Queries, keys, values, the output's cotangent, and in float32 [B, H, T] the rows'
        factor, logsumexp in base 2, entropy and its cotangent.
      segments: See `forward`.
      interpret: See `forward`.

    Returns:
      dq, dk, dv [B, T, H, D] and the gradient of `row_scale` [B, H, T].
    """
    wgs, stages, dim = tiles.workgroups, tiles.stages, problem.head_dim
    number = problem.length // ROWS
    ring = tile(stages, number, ROWS, dim, dtype=problem.dtype)
    shared = _Shared(
        query=ring,
        key=ring,
        value=ring,
        dout=ring,
        rows=plgpu.SMEM((stages, number, 6, ROWS), jnp.float32),
        ready=plgpu.Barrier(num_arrivals=8 * number, num_barriers=stages),
        free=plgpu.Barrier(num_arrivals=wgs, num_barriers=stages),
        turn=plgpu.Barrier(num_arrivals=wgs),
        staged=tile(wgs, 3, ROWS, dim, dtype=problem.dtype),
        staged_rows=plgpu.SMEM((wgs, ROWS), jnp.float32),
    )
    items = problem.batch * problem.heads
    matrix = jax.ShapeDtypeStruct(operands[0].shape, problem.dtype)
    rows = jax.ShapeDtypeStruct((problem.batch, problem.heads, problem.length), jnp.float32)
    return launch(
        _BackwardShort,
        problem,
        tiles,
        items,
        (matrix, matrix, matrix, rows),
        shared,
        (*operands, *segments),
        interpret,
    )


class _Shared(NamedTuple):
    query: Any
    key: Any
    value: Any
    dout: Any
    rows: Any
    ready: Any
    free: Any
    turn: Any
    staged: Any
    staged_rows: Any


class _BackwardShort(Cta):
    @property
    def number(self):
        """Tiles of 64 positions."""
        return self.problem.length // ROWS

    def produce(self):
        s, stages = self.shared, self.tiles.stages
        matrices = tuple(zip(self.inputs[:4], (s.query, s.key, s.value, s.dout), strict=True))

        def item(n, index, count):
            _, batch, head = self.locate(index, self.problem.heads)
            slot = lax.rem(n, jnp.int32(stages))
            pl.when(n >= stages)(lambda: plgpu.barrier_wait(s.free.at[slot]))
            for i in range(self.number):
                at = pl.ds(i * ROWS, ROWS)
                for ref, ring in matrices:
                    plgpu.copy_gmem_to_smem(
                        ref.at[batch, at, head], ring.at[slot, i], s.ready.at[slot]
                    )
                for j, ref in enumerate(self.inputs[4:8]):
                    plgpu.copy_gmem_to_smem(
                        ref.at[batch, head, at], s.rows.at[slot, i, j], s.ready.at[slot]
                    )
            return count

        self.each_item(item)

    def consume(self):
        def item(n, index, count):
            _, batch, head = self.locate(index, self.problem.heads)
            slot = lax.rem(n, jnp.int32(self.tiles.stages))
            wg = jnp.minimum(lax.axis_index("wg"), self.number - 1)
            segments = tuple(ref.at[batch] for ref in self.inputs[8:])
            plgpu.barrier_wait(self.shared.ready.at[slot])
            self.query_gradient(slot, wg, segments)
            self.sync()
            dk, dv = self.key_gradient(slot, wg, segments)
            plgpu.barrier_arrive(self.shared.free.at[slot])
            self.store(dk, dv, batch, head, pl.ds(wg * ROWS, ROWS))
            return count

        self.each_item(item)
        plgpu.wait_smem_to_gmem(0)

    def query_gradient(self, slot, mine, segments):
        """dq and the scale's gradient to the stage; c beta and c gamma for `key_gradient`."""
        s, shape = self.shared, (ROWS, ROWS)
        query, dout, rows = s.query.at[slot, mine], s.dout.at[slot, mine], s.rows.at[slot, mine]
        c, lse, entropy, g = (load(rows.at[i], layout=BY_ROW) for i in range(4))
        beta, delta, terms = -LN2 * g, 0.0, []
        for j in range(self.number):

            def weights(s_ref, dp_ref, j=j):
                plgpu.wgmma(s_ref, query, s.key.at[slot, j].transpose((1, 0)))
                plgpu.wgmma(dp_ref, dout, s.value.at[slot, j].transpose((1, 0)))
                x = plgpu.wgmma_accumulator_load(s_ref, wait_n=1) * column(c, shape)
                x = x - column(lse, shape)
                args = (mine * ROWS, j * ROWS, segments, self.problem.causal or self.partial)
                mask = visible(self.problem, shape, *args)
                p = jnp.exp2(x)
                if mask is not None:
                    p = jnp.where(mask, p, 0.0)
                return x, p, dp_ref[...]

            acc = accumulator(shape)
            x, p, dp = pl.run_scoped(weights, acc, acc)
            delta = delta + (p * dp).sum(axis=1)
            terms.append((p, dp + column(beta, shape) * x if self.tiles.entropy else dp))
        gamma = -delta - g * entropy
        rows[4] = c * beta
        rows[5] = c * gamma

        def total(dq_ref):
            for j, (p, dp) in enumerate(terms):
                ds = (p * (dp + column(gamma, shape))).astype(self.problem.dtype)
                plgpu.wgmma(dq_ref, ds, s.key.at[slot, j])
            return dq_ref[...]

        u = pl.run_scoped(total, accumulator((ROWS, self.problem.head_dim)))
        plgpu.wait_smem_to_gmem(0, wait_read_only=True)
        wg = lax.axis_index("wg")
        s.staged_rows[wg] = (u * wide(query)).sum(axis=1)
        s.staged[wg, 0] = (u * column(LN2 * c, u.shape)).astype(self.problem.dtype)

    @property
    def partial(self):
        return self.problem.keys < self.problem.source

    def key_gradient(self, slot, mine, segments):
        """Returns dk, dv of this warpgroup's keys, float32."""
        s, p = self.shared, self.problem
        order = (0, 1, 4, 5)

        def loop(dk_ref, dv_ref):
            def body(i, _):
                mask = functools.partial(
                    visible, p, (ROWS, ROWS), i * ROWS, mine * ROWS, segments, p.causal, True
                )
                weights, ds = score_gradient(
                    s.key.at[slot, mine],
                    s.value.at[slot, mine],
                    s.query.at[slot, i],
                    s.dout.at[slot, i],
                    lambda j: s.rows.at[slot, i, order[j]],
                    mask,
                    self.tiles.entropy,
                )
                plgpu.wgmma(dv_ref, weights, s.dout.at[slot, i])
                plgpu.wgmma(dk_ref, ds, s.query.at[slot, i])
                plgpu.wgmma_wait(0)

            lax.fori_loop(mine if p.causal else 0, self.number, body, None)
            return dk_ref[...], dv_ref[...]

        acc = accumulator((ROWS, p.head_dim))
        return pl.run_scoped(loop, acc, acc)

    def store(self, dk, dv, batch, head, at):
        wg = lax.axis_index("wg")
        staged = self.shared.staged.at[wg]
        staged[1] = (dk * LN2).astype(self.problem.dtype)
        staged[2] = dv.astype(self.problem.dtype)
        plgpu.commit_smem()
        for i in range(3):
            target = self.outputs[i].at[batch, at, head]
            plgpu.copy_smem_to_gmem(staged.at[i], target, commit_group=False)
        target = self.outputs[3].at[batch, head, at]
        plgpu.copy_smem_to_gmem(self.shared.staged_rows.at[wg], target, commit_group=False)
        plgpu.commit_smem_to_gmem_group()
