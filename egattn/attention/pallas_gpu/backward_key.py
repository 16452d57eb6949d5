"""The backward kernel over keys: gradients of keys and values."""

import functools
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import mosaic_gpu as plgpu

from egattn.attention.pallas_gpu.common import (
    BY_COLUMN,
    LN2,
    ROWS,
    Problem,
    RowCta,
    Tiles,
    accumulator,
    launch,
    load,
    row,
    tile,
    visible,
)


@functools.partial(jax.jit, static_argnames=("problem", "tiles", "interpret"))
def backward_key(
    problem: Problem,
    tiles: Tiles,
    operands: Sequence[jax.Array],
    segments: Sequence[jax.Array] = (),
    interpret: Any = None,
) -> tuple[jax.Array, jax.Array]:
    """Computes the gradients that are sums over queries, of all the heads that share a key head.

    Scores are formed transposed, [keys, queries], so that they leave the registers as the left
    operand of the products with the cotangent and the queries.

    Args:
      problem: The problem; lengths are multiples of 64.
      tiles: Block sizes.
      operands: Queries, keys, values, the output's cotangent and the rows [B, H, 4, T] that
        `backward_query` returns.
      segments: See `forward`.
      interpret: See `forward`.

    Returns:
      dk and dv [B, S, K, D].
    """
    wgs, stages, slots, dim = tiles.workgroups, tiles.stages, tiles.slots, problem.head_dim
    mine = tile(wgs, slots, ROWS, dim, dtype=problem.dtype)
    ring = tile(stages, tiles.block, dim, dtype=problem.dtype)
    shared = _Shared(
        key=mine,
        value=mine,
        query=ring,
        dout=ring,
        rows=plgpu.SMEM((stages, 4, tiles.block), jnp.float32),
        key_ready=plgpu.Barrier(num_arrivals=2, num_barriers=wgs * slots),
        ready=plgpu.Barrier(num_arrivals=3, num_barriers=stages),
        free=plgpu.Barrier(num_arrivals=wgs, num_barriers=stages),
    )
    items = pl.cdiv(problem.source, ROWS * wgs) * problem.batch * problem.kv_heads
    outputs = (jax.ShapeDtypeStruct(operands[1].shape, problem.dtype),) * 2
    return launch(
        _BackwardKey, problem, tiles, items, outputs, shared, (*operands, *segments), interpret
    )


class _Shared(NamedTuple):
    key: Any
    value: Any
    query: Any
    dout: Any
    rows: Any
    key_ready: Any
    ready: Any
    free: Any


class _BackwardKey(RowCta):
    def tile(self, item):
        """First key, batch and head; under a causal mask the first keys have most queries."""
        index, batch, head = self.locate(item, self.problem.kv_heads)
        return index * (ROWS * self.tiles.workgroups), batch, head

    def blocks(self, first):
        """(first, number) of the query blocks that see any key from `first` on."""
        p, block = self.problem, self.tiles.block
        number = jnp.int32(pl.cdiv(p.length, block))
        if not p.causal:
            return jnp.int32(0), number
        start = lax.div(jnp.maximum(first - p.offset, 0), jnp.int32(block))
        start = jnp.minimum(start, number - 1)
        return start, number - start

    def produce(self):
        s, group, block = self.shared, self.problem.group, self.tiles.block
        q_ref, _, _, do_ref, rows_ref, *_ = self.inputs

        def item(n, index, count):
            first, batch, kv_head = self.tile(index)
            start, number = self.blocks(first)

            @pl.loop(0, number * group)
            def _(step):
                head = kv_head * group + lax.div(step, number)
                at = pl.ds((start + lax.rem(step, number)) * block, block)
                matrix, rows = (batch, at, head), (batch, head, slice(None), at)
                copies = (
                    (q_ref, s.query, s.ready, s.free),
                    (do_ref, s.dout, s.ready, None),
                    (rows_ref, s.rows, s.ready, None),
                )
                self.load_block(
                    lambda ref: rows if ref is rows_ref else matrix, count + step, copies
                )

            return count + number * group

        self.each_item(item)

    def load_rows(self, item, slot):
        first, batch, head = self.tile(item)
        s, wg = self.shared, lax.axis_index("wg")
        at = (batch, pl.ds(self.mine(first, self.problem.source), ROWS), head)
        ready = s.key_ready.at[wg * self.tiles.slots + slot]
        _, k_ref, v_ref, *_ = self.inputs
        plgpu.copy_gmem_to_smem(k_ref.at[at], s.key.at[wg, slot], ready)
        plgpu.copy_gmem_to_smem(v_ref.at[at], s.value.at[wg, slot], ready)

    def compute(self, item, slot, count):
        s, p, wg = self.shared, self.problem, lax.axis_index("wg")
        first, batch, head = self.tile(item)
        mine = self.mine(first, p.source)
        start, number = self.blocks(first)
        key, value = s.key.at[wg, slot], s.value.at[wg, slot]
        plgpu.barrier_wait(s.key_ready.at[wg * self.tiles.slots + slot])
        segments = tuple(ref.at[batch] for ref in self.inputs[5:])
        # From this block on, every query sees this warpgroup's last key.
        clear = jnp.int32(0)
        if p.causal:
            clear = pl.cdiv(jnp.maximum(mine + ROWS - 1 - p.offset, 0), self.tiles.block) - start
            clear = jnp.clip(clear, 0, number)

        def loop(dk_ref, dv_ref):
            def one_head(_, count):
                step = functools.partial(
                    self.step, dk_ref, dv_ref, key, value, segments, mine, start, count
                )
                if p.causal:
                    lax.fori_loop(0, clear, functools.partial(step, masked=True), None)
                lax.fori_loop(clear, number, functools.partial(step, masked=False), None)
                return count + number

            if p.group == 1:
                one_head(0, count)
            else:
                lax.fori_loop(0, p.group, one_head, count)
            return dk_ref[...], dv_ref[...]

        acc = accumulator((ROWS, p.head_dim))
        dk, dv = pl.run_scoped(loop, acc, acc)
        key[...] = (dk * LN2).astype(p.dtype)
        value[...] = dv.astype(p.dtype)
        plgpu.commit_smem()
        at = (batch, pl.ds(mine, ROWS), head)
        for source, target in ((key, self.outputs[0]), (value, self.outputs[1])):
            plgpu.copy_smem_to_gmem(source, target.at[at], commit_group=False)
        plgpu.commit_smem_to_gmem_group()
        return count + number * p.group

    def step(self, dk_ref, dv_ref, key, value, segments, mine, start, count, step, _, *, masked):
        """Adds one block of queries to both gradients."""
        s = self.shared
        shape = (ROWS, self.tiles.block)
        slot = lax.rem(count + step, jnp.int32(self.tiles.stages))
        plgpu.barrier_wait(s.ready.at[slot])

        query = (start + step) * self.tiles.block
        mask = functools.partial(
            visible, self.problem, shape, query, mine, segments, masked, transposed=True
        )
        p, ds = score_gradient(
            key,
            value,
            s.query.at[slot],
            s.dout.at[slot],
            lambda i: s.rows.at[slot, i],
            mask,
            self.tiles.entropy,
        )
        plgpu.wgmma(dv_ref, p, s.dout.at[slot])
        plgpu.wgmma(dk_ref, ds, s.query.at[slot])
        plgpu.wgmma_wait(0)
        plgpu.barrier_arrive(s.free.at[slot])


def score_gradient(key, value, query, dout, vector, mask, entropy=True):
    """Weights and score gradients of one block, both [keys, queries] in the keys' dtype.

    Args:
      key: Keys of the block, in shared memory, as are the next three.
      value: Values.
      query: Queries.
      dout: Cotangent of the output.
      vector: Gives the queries' c, logsumexp, c beta, c gamma by index 0 to 3.
      mask: Gives the block's mask or None.
      entropy: Whether beta counts.
    """
    shape = (key.shape[0], query.shape[0])

    def along(i):
        return row(load(vector(i), layout=BY_COLUMN), shape)

    def body(s_ref, dp_ref):
        plgpu.wgmma(s_ref, key, query.transpose((1, 0)))
        plgpu.wgmma(dp_ref, value, dout.transpose((1, 0)))
        c = along(0)
        x = plgpu.wgmma_accumulator_load(s_ref, wait_n=1) * c - along(1)
        p = jnp.exp2(x)
        seen = mask()
        if seen is not None:
            p = jnp.where(seen, p, 0.0)
        p16 = p.astype(key.dtype)
        dp = dp_ref[...] * c + along(3)
        if entropy:
            dp = dp + along(2) * x
        return p16, (p * dp).astype(key.dtype)

    acc = accumulator(shape)
    return pl.run_scoped(body, acc, acc)
