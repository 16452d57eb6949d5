"""What the Hopper kernels share: persistent thread blocks, masks, layouts and products."""

import dataclasses
import functools
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import mosaic_gpu as plgpu

ROWS = 64
"""Rows of the score tile that one warpgroup owns: the M of a wgmma instruction."""

MULTIPROCESSORS = 132
"""Thread blocks of a persistent kernel: one for each multiprocessor of an H100 or H200."""

LOG2E = 1.4426950408889634
LN2 = 0.6931471805599453
LOWEST = -1e30
"""A score below all others; finite, so that no difference of two is NaN."""

BY_ROW = plgpu.Layout.WGMMA.reduce(1)
BY_COLUMN = plgpu.Layout.WGMMA.reduce(0)

# Registers a thread of the (computing, loading) warpgroups, by number of computing ones.
_REGISTERS = {2: (232, 40), 3: (160, 24)}


class Problem(NamedTuple):
    """What a kernel is compiled for: static facts about one call."""

    batch: int
    length: int
    source: int
    heads: int
    kv_heads: int
    head_dim: int
    causal: bool
    offset: int
    """Query i sees keys j <= i + offset, where causal."""
    keys: int
    """Keys that exist; the rest of `source` is padding."""
    dtype: Any

    @property
    def group(self) -> int:
        """Query heads that share a key head."""
        return self.heads // self.kv_heads

    def key_blocks(self, first: Any, rows: int, block: int) -> Any:
        """Number of key blocks that the query rows from `first` on see, at least 1."""
        if not self.causal:
            return jnp.int32(pl.cdiv(self.keys, block))
        return pl.cdiv(jnp.clip(first + rows + self.offset, 1, self.keys), block)

    def clear_keys(self, mine: Any, block: int, steps: Any) -> tuple[Any, bool]:
        """Number of first key blocks that need no mask, and whether any other does."""
        if self.causal:
            seen = jnp.clip(mine + self.offset + 1, 0, self.keys)
            return jnp.minimum(lax.div(seen, jnp.int32(block)), steps), True
        if self.keys % block:
            return steps - 1, True
        return steps, False


class Tiles(NamedTuple):
    """How a kernel cuts its problem."""

    workgroups: int
    """Computing warpgroups, of `ROWS` rows each."""
    block: int
    """Columns of a score tile, which the loop advances by."""
    stages: int = 2
    """Blocks in flight from memory."""
    slots: int = 3
    """Row tiles a warpgroup holds: with more than one the next arrives before it is needed."""
    take_turns: bool = False
    """Whether two warpgroups alternate between the matrix units and the exponentials."""
    entropy: bool = True
    """Off, the kernel leaves the entropy out: for measuring what it costs."""


@dataclasses.dataclass(frozen=True)
class Cta:
    """One persistent thread block, as the methods that its warpgroups run.

    The last warpgroup loads, the others compute; both walk the same work items, a grid apart.
    """

    problem: Problem
    tiles: Tiles
    items: int
    inputs: Sequence[Any]
    outputs: Sequence[Any]
    shared: Any

    @property
    def grid(self) -> int:
        """Number of thread blocks."""
        return min(self.items, MULTIPROCESSORS)

    def produce(self) -> None:
        """What the loading warpgroup does."""
        raise NotImplementedError

    def consume(self) -> None:
        """What the computing warpgroups do."""
        raise NotImplementedError

    def run(self) -> None:
        """The body of the kernel."""
        wgs = self.tiles.workgroups
        wg = lax.axis_index("wg")

        @pl.when(wg == wgs)
        def _():
            plgpu.set_max_registers(_REGISTERS[wgs][1], action="decrease")
            self.produce()

        @pl.when(wg < wgs)
        def _():
            plgpu.set_max_registers(_REGISTERS[wgs][0], action="increase")
            self.consume()

    def rounds(self) -> Any:
        """Number of items of this thread block."""
        full, rest = divmod(self.items, self.grid)
        return full + (self.place(jnp.int32(full)) - full * self.grid < rest).astype(jnp.int32)

    def place(self, n: Any) -> Any:
        """This block's n-th item. Every other round runs backwards, so that blocks share evenly
        where items grow shorter in order."""
        cta = lax.axis_index("cta")
        return n * self.grid + jnp.where(lax.rem(n, jnp.int32(2)) == 1, self.grid - 1 - cta, cta)

    def each_item(self, body: Callable[[Any, Any, Any], Any]) -> None:
        """Runs `count = body(n, item, count)` for each item of this thread block."""
        lax.fori_loop(
            0, self.rounds(), lambda n, count: body(n, self.place(n), count), jnp.int32(0)
        )

    def locate(self, item: Any, heads: int) -> tuple[Any, Any, Any]:
        """(tile, batch, head) of an item: all heads of the first tile, then of the next."""
        per_tile = jnp.int32(self.problem.batch * heads)
        rest = lax.rem(item, per_tile)
        return (
            lax.div(item, per_tile),
            lax.div(rest, jnp.int32(heads)),
            lax.rem(rest, jnp.int32(heads)),
        )

    def mine(self, first: Any, length: int) -> Any:
        """First row of this warpgroup; one that has none does the last rows again."""
        return jnp.minimum(first + lax.axis_index("wg") * ROWS, length - ROWS)

    def sync(self) -> None:
        """Meets the other computing warpgroup."""
        plgpu.barrier_arrive(self.shared.turn)
        plgpu.barrier_wait(self.shared.turn)

    def load_block(self, at: Any, count: Any, copies: Sequence[tuple[Any, Any, Any, Any]]) -> None:
        """Starts the copies (source, ring, ready, free) of the `count`-th block."""
        slot = lax.rem(count, jnp.int32(self.tiles.stages))
        for source, ring, ready, free in copies:
            if free is not None:
                wait = functools.partial(plgpu.barrier_wait, free.at[slot])
                pl.when(count >= self.tiles.stages)(wait)
            plgpu.copy_gmem_to_smem(source.at[at(source)], ring.at[slot], ready.at[slot])


class RowCta(Cta):
    """A thread block whose warpgroups own a tile of rows each and pass over the columns."""

    def load_rows(self, item: Any, slot: Any) -> None:
        """Starts the copies of this warpgroup's rows of an item."""
        raise NotImplementedError

    def compute(self, item: Any, slot: Any, count: Any) -> Any:
        """Computes with the rows in `slot`; returns the advanced number of column blocks."""
        raise NotImplementedError

    def consume(self) -> None:
        """Walks the items, with the next one's rows already on their way."""
        slots, wg = self.tiles.slots, lax.axis_index("wg")
        if slots > 1:
            self.load_rows(self.place(jnp.int32(0)), jnp.int32(0))
        if self.tiles.take_turns:
            pl.when(wg == 1)(self.sync)

        def body(n, item, count):
            # Until the results that last used the slot have left it.
            plgpu.wait_smem_to_gmem(max(slots - 2, 0), wait_read_only=True)
            if slots == 1:
                self.load_rows(item, jnp.int32(0))
                return self.compute(item, jnp.int32(0), count)

            @pl.when(n + 1 < self.rounds())
            def _():
                self.load_rows(self.place(n + 1), lax.rem(n + 1, jnp.int32(slots)))

            return self.compute(item, lax.rem(n, jnp.int32(slots)), count)

        self.each_item(body)
        if self.tiles.take_turns:
            pl.when(wg == 0)(self.sync)
        plgpu.wait_smem_to_gmem(0)


class QueryCta(RowCta):
    """A thread block whose warpgroups own query rows and pass over the keys.

    Keys and values are its second and third inputs, and rings in shared memory.
    """

    def tile(self, item: Any) -> tuple[Any, Any, Any]:
        """First query row, batch and head; under a causal mask the longest rows come first."""
        index, batch, head = self.locate(item, self.problem.heads)
        block = ROWS * self.tiles.workgroups
        if self.problem.causal:
            index = pl.cdiv(self.problem.length, block) - 1 - index
        return index * block, batch, head

    def steps(self, first: Any) -> Any:
        """Number of key blocks that the rows from `first` on see."""
        return self.problem.key_blocks(first, ROWS * self.tiles.workgroups, self.tiles.block)

    def produce(self) -> None:
        """Loads the keys and values of every item, block after block."""
        s, block = self.shared, self.tiles.block
        _, k_ref, v_ref, *_ = self.inputs
        copies = (
            (k_ref, s.key, s.key_ready, s.key_free),
            (v_ref, s.value, s.value_ready, s.value_free),
        )

        def item(n, index, count):
            first, batch, head = self.tile(index)
            kv_head = lax.div(head, jnp.int32(self.problem.group))
            steps = self.steps(first)

            @pl.loop(0, steps)
            def _(step):
                at = (batch, pl.ds(step * block, block), kv_head)
                self.load_block(lambda _: at, count + step, copies)

            return count + steps

        self.each_item(item)


def launch(
    cta: type[Cta],
    problem: Problem,
    tiles: Tiles,
    items: int,
    outputs: Sequence[jax.ShapeDtypeStruct],
    shared: Any,
    operands: Sequence[jax.Array],
    interpret: Any,
) -> Any:
    """Runs a persistent kernel over `items` work items."""

    def kernel(*refs):
        inputs, out, scratch = refs[: len(operands)], refs[len(operands) : -1], refs[-1]
        cta(problem, tiles, items, inputs, out, scratch).run()

    # Before jax 0.11, where these kernels do not run, the signature was another; as in `load`.
    function: Any = plgpu.kernel
    return function(
        kernel,
        out_type=list(outputs),
        scratch_types=[shared],
        grid=(min(items, MULTIPROCESSORS),),
        grid_names=("cta",),
        num_threads=tiles.workgroups + 1,
        thread_name="wg",
        compiler_params=plgpu.CompilerParams(approx_math=True),
        interpret=interpret,
    )(*operands)


def tile(*shape: int, dtype: Any) -> Any:
    """Shared memory for matrix operands, tiled and swizzled as wgmma reads them."""
    transforms = (plgpu.TilingTransform((8, 64)), plgpu.SwizzleTransform(128))
    return plgpu.SMEM(shape, dtype, transforms=transforms)


def column(vector: jax.Array, shape: tuple[int, ...]) -> jax.Array:
    """Repeats a value per row over the row."""
    return lax.broadcast_in_dim(vector, shape, [0])


def row(vector: jax.Array, shape: tuple[int, ...]) -> jax.Array:
    """Repeats a value per column over the column."""
    return lax.broadcast_in_dim(vector, shape, [1])


def zeros(*shape: int) -> jax.Array:
    """Zeros in the registers of a wgmma accumulator, or one per row of it."""
    layout = plgpu.Layout.WGMMA if len(shape) == 2 else BY_ROW
    return plgpu.layout_cast(jnp.zeros(shape, jnp.float32), layout)


def accumulator(shape: tuple[int, ...]) -> Any:
    """Registers that `wgmma` adds float32 products to; they start at 0."""
    return plgpu.WGMMAAccumulatorRef((shape[0], shape[1]), jnp.float32)


def load(ref: Any, layout: Any = BY_ROW, **options: Any) -> jax.Array:
    """Loads a vector or a tile from memory in the layout of an accumulator or its rows."""
    function: Any = plgpu.load
    return function(ref, layout=layout, **options)


def wide(ref: Any) -> jax.Array:
    """A tile in shared memory as float32 in the registers of an accumulator."""
    return load(ref, layout=plgpu.Layout.WGMMA).astype(jnp.float32)


def product(left: Any, right: Any, meanwhile: Callable[[], None] | None = None) -> jax.Array:
    """`left @ right` in float32; `meanwhile` runs once it is issued."""

    def body(acc_ref):
        plgpu.wgmma(acc_ref, left, right)
        if meanwhile is not None:
            meanwhile()
        return acc_ref[...]

    return pl.run_scoped(body, accumulator((left.shape[0], right.shape[1])))


def visible(
    problem: Problem,
    shape: tuple[int, ...],
    query: Any,
    key: Any,
    segments: Sequence[Any],
    masked: bool,
    transposed: bool = False,
) -> jax.Array | None:
    """Mask of the score block at (query, key), None where all its queries see all its keys.

    Args:
      problem: The problem.
      shape: (queries, keys) of the block, the other way round if `transposed`.
      query: First query of the block.
      key: First key.
      segments: Documents of the queries and of the keys, refs in global memory, or nothing.
      masked: Whether the block crosses the diagonal or the end of the keys.
      transposed: Whether rows are keys.
    """
    mask = None
    if masked:
        q, k = (1, 0) if transposed else (0, 1)
        keys = plgpu.broadcasted_iota(jnp.int32, shape, k, layout=plgpu.Layout.WGMMA) + key
        if problem.causal:
            queries = plgpu.broadcasted_iota(jnp.int32, shape, q, layout=plgpu.Layout.WGMMA)
            mask = keys <= queries + (query + problem.offset)
        if not problem.causal or problem.keys < min(
            problem.source, problem.length + problem.offset
        ):
            inside = keys < problem.keys
            mask = inside if mask is None else mask & inside
    if segments:
        starts, refs = (query, key), segments
        if transposed:
            starts, refs = starts[::-1], segments[::-1]
        down, along = (
            load(ref.at[pl.ds(start, size)], layout=layout, optimized=False)
            for ref, start, size, layout in zip(
                refs, starts, shape, (BY_ROW, BY_COLUMN), strict=True
            )
        )
        same = column(down, shape) == row(along, shape)
        mask = same if mask is None else mask & same
    return mask
