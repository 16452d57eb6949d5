"""The forward kernel for Hopper: output, logsumexp and entropy in one pass over the keys."""

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
    LOWEST,
    ROWS,
    Problem,
    QueryCta,
    Tiles,
    column,
    launch,
    load,
    product,
    tile,
    visible,
    zeros,
)


@functools.partial(jax.jit, static_argnames=("problem", "tiles", "interpret"))
def forward(
    problem: Problem,
    tiles: Tiles,
    operands: Sequence[jax.Array],
    segments: Sequence[jax.Array] = (),
    interpret: Any = None,
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Computes attention with entropy.

    Args:
      problem: The problem; lengths are multiples of 64.
      tiles: Block sizes.
      operands: Queries [B, T, H, D], keys and values [B, S, K, D], and the rows' factor
        `row_scale * log2 e` [B, H, T], float32.
      segments: Documents of queries and keys, each [B, T] int32; equal ids see each other.
      interpret: Pallas's interpreter, for a machine without such a GPU.

    Returns:
      Output [B, T, H, D], logsumexp of the scores in base 2 [B, H, T] and entropy [B, H, T].
    """
    wgs, stages, slots, dim = tiles.workgroups, tiles.stages, tiles.slots, problem.head_dim
    ring = tile(stages, tiles.block, dim, dtype=problem.dtype)
    ready = plgpu.Barrier(num_barriers=stages)
    free = plgpu.Barrier(num_arrivals=wgs, num_barriers=stages)
    shared = _Shared(
        query=tile(wgs, slots, ROWS, dim, dtype=problem.dtype),
        rows=plgpu.SMEM((wgs, slots, 3, ROWS), jnp.float32),
        key=ring,
        value=ring,
        rows_ready=plgpu.Barrier(num_arrivals=2, num_barriers=wgs * slots),
        key_ready=ready,
        value_ready=ready,
        key_free=free,
        value_free=free,
        turn=plgpu.Barrier(num_arrivals=2),
    )
    items = pl.cdiv(problem.length, ROWS * wgs) * problem.batch * problem.heads
    rows = jax.ShapeDtypeStruct((problem.batch, problem.heads, problem.length), jnp.float32)
    outputs = (jax.ShapeDtypeStruct(operands[0].shape, problem.dtype), rows, rows)
    return launch(
        _Forward, problem, tiles, items, outputs, shared, (*operands, *segments), interpret
    )


class _Shared(NamedTuple):
    query: Any
    rows: Any
    key: Any
    value: Any
    rows_ready: Any
    key_ready: Any
    value_ready: Any
    key_free: Any
    value_free: Any
    turn: Any


class _Forward(QueryCta):
    def load_rows(self, item, slot):
        first, batch, head = self.tile(item)
        s, wg = self.shared, lax.axis_index("wg")
        rows = pl.ds(self.mine(first, self.problem.length), ROWS)
        ready = s.rows_ready.at[wg * self.tiles.slots + slot]
        q_ref, _, _, c_ref, *_ = self.inputs
        plgpu.copy_gmem_to_smem(q_ref.at[batch, rows, head], s.query.at[wg, slot], ready)
        plgpu.copy_gmem_to_smem(c_ref.at[batch, head, rows], s.rows.at[wg, slot, 0], ready)

    def compute(self, item, slot, count):
        s, p, wg = self.shared, self.problem, lax.axis_index("wg")
        first, batch, head = self.tile(item)
        mine, steps = self.mine(first, p.length), self.steps(first)
        query, rows = s.query.at[wg, slot], s.rows.at[wg, slot]
        plgpu.barrier_wait(s.rows_ready.at[wg * self.tiles.slots + slot])
        # At 0 a score that is masked out would no longer be below the others.
        c = jnp.maximum(load(rows.at[0], layout=BY_ROW), 1e-20)
        segments = tuple(ref.at[batch] for ref in self.inputs[4:])
        step = functools.partial(self.step, query, c, segments, mine, count)
        carry = (zeros(ROWS) + LOWEST, zeros(ROWS), zeros(ROWS), zeros(ROWS, p.head_dim))
        clear, masked = p.clear_keys(mine, self.tiles.block, steps)
        carry = lax.fori_loop(0, clear, functools.partial(step, masked=False), carry)
        if masked:
            carry = lax.fori_loop(clear, steps, functools.partial(step, masked=True), carry)
        self.store(query, rows, (batch, head, pl.ds(mine, ROWS)), c, carry)
        return count + steps

    def step(self, query, c, segments, mine, count, step, carry, *, masked):
        """Adds one block of keys to the running (maximum, sum, weighted sum, output)."""
        s, turns = self.shared, self.tiles.take_turns
        slot = lax.rem(count + step, jnp.int32(self.tiles.stages))
        plgpu.barrier_wait(s.key_ready.at[slot])
        scores = product(query, s.key.at[slot].transpose((1, 0)), self.sync if turns else None)
        plgpu.barrier_arrive(s.key_free.at[slot])
        key = step * self.tiles.block
        mask = visible(self.problem, scores.shape, mine, key, segments, masked)
        if mask is not None:
            scores = jnp.where(mask, scores, LOWEST)
        rows, keep, p = self.softmax(scores, c, *carry[:3])
        if turns:
            plgpu.barrier_arrive(s.turn)
        plgpu.barrier_wait(s.value_ready.at[slot])
        if turns:
            plgpu.barrier_wait(s.turn)
        pv = product(p, s.value.at[slot])
        plgpu.barrier_arrive(s.value_free.at[slot])
        return *rows, carry[3] * column(keep, pv.shape) + pv

    def softmax(self, scores, c, row_max, total, weighted):
        new_max = jnp.maximum(row_max, scores.max(axis=1))
        # Not c * LOWEST, whose rounding would not cancel in the next line.
        base = jnp.where(new_max == LOWEST, 0.0, c * new_max)
        x = scores * column(c, scores.shape) - column(base, scores.shape)
        p = jnp.exp2(x)
        shift = c * row_max - base
        keep = jnp.exp2(shift)
        if self.tiles.entropy:
            weighted = keep * (weighted + shift * total) + (p * x).sum(axis=1)
        total = keep * total + p.sum(axis=1)
        return (new_max, total, weighted), keep, p.astype(self.problem.dtype)

    def store(self, query, rows, at, c, carry):
        """Writes output, logsumexp and entropy by way of the row tile's own shared memory."""
        out_ref, lse_ref, entropy_ref = self.outputs
        row_max, total, weighted, out = carry
        seen = total > 0
        total = jnp.where(seen, total, 1.0)
        inverse, log_total = 1.0 / total, jnp.log2(total)
        entropy = LN2 * (log_total - weighted * inverse)
        query[...] = (out * column(inverse, out.shape)).astype(self.problem.dtype)
        rows[1] = jnp.where(seen, c * row_max + log_total, 0.0)
        # Less is the rounding of its two terms: a row with one key has exactly none.
        rows[2] = jnp.where(entropy < 5e-7, 0.0, entropy)
        plgpu.commit_smem()
        batch, head, mine = at
        plgpu.copy_smem_to_gmem(query, out_ref.at[batch, mine, head], commit_group=False)
        plgpu.copy_smem_to_gmem(rows.at[1], lse_ref.at[at], commit_group=False)
        plgpu.copy_smem_to_gmem(rows.at[2], entropy_ref.at[at], commit_group=False)
        plgpu.commit_smem_to_gmem_group()
