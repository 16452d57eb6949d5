"""What the TPU kernels share: the problem, its blocks, and a block of scores."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu
from jaxtyping import Array

BLOCKS = (512, 384, 256, 128)
# Below all scores; finite, so that no difference of two is NaN.
LOWEST = -1e30


class Problem(NamedTuple):
    """Static facts of a call; lengths are padded to multiples of the blocks."""

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
    block_q: int
    block_k: int
    interpret: Any

    @property
    def group(self) -> int:
        """Query heads of a key head."""
        return self.heads // self.kv_heads

    def last_keys(self, i: Any) -> Any:
        """Index of the last key block that query block i sees."""
        end = self.source // self.block_k - 1
        if not self.causal:
            return end
        return jnp.clip(((i + 1) * self.block_q - 1 + self.offset) // self.block_k, 0, end)

    def first_queries(self, j: Any) -> Any:
        """Index of the first query block that sees key block j."""
        if not self.causal:
            return 0
        end = self.length // self.block_q - 1
        return jnp.clip((j * self.block_k - self.offset) // self.block_q, 0, end)

    def seen(self, i: Any, j: Any) -> Any:
        """Whether query block i sees any of key block j."""
        if not self.causal:
            return True
        return j * self.block_k <= (i + 1) * self.block_q - 1 + self.offset


def dot(x, y, contract: tuple[int, int]):
    """Product over axis `contract[0]` of x and `contract[1]` of y, in float32."""
    # Said for both: a default of "highest" makes products of bfloat16 that Mosaic cannot compile.
    float32 = x.dtype == jnp.float32
    precision = jax.lax.Precision.HIGHEST if float32 else jax.lax.Precision.DEFAULT
    dims = (((contract[0],), (contract[1],)), ((), ()))
    return jax.lax.dot_general(x, y, dims, precision=precision, preferred_element_type=jnp.float32)


def scores(p: Problem, q, k, scale, segments, i, j):
    """Unscaled and scaled scores [keys, queries] of block (i, j), and which are visible."""
    raw = dot(k, q, (1, 1))
    shape = raw.shape
    key = jax.lax.broadcasted_iota(jnp.int32, shape, 0) + j * p.block_k
    mask = key < p.keys
    if p.causal:
        query = jax.lax.broadcasted_iota(jnp.int32, shape, 1) + i * p.block_q
        mask &= key <= query + p.offset
    if segments:
        mask &= segments[0][...] == segments[1][...]
    return raw, raw * scale, mask


def parallel(independent: int, accumulated: int) -> Any:
    """Which axes of a grid may be split over cores."""
    semantics: Any = ("parallel",) * independent + ("arbitrary",) * accumulated
    return pltpu.CompilerParams(dimension_semantics=semantics)


class Specs(NamedTuple):
    """Blocks of the operands at a grid position, which `locate` turns into (b, head, i, j)."""

    problem: Problem
    locate: Any

    def _spec(self, shape: tuple[int, int], index: Any) -> pl.BlockSpec:
        return pl.BlockSpec((None, None, *shape), lambda *at: index(*self.locate(*at)))

    def query(self, width: int) -> pl.BlockSpec:
        """Of [B, H, T, width]."""
        return self._spec((self.problem.block_q, width), lambda b, h, i, j: (b, h, i, 0))

    def rows(self, count: int) -> pl.BlockSpec:
        """Of [B, H, count, T]."""
        return self._spec((count, self.problem.block_q), lambda b, h, i, j: (b, h, 0, i))

    def key(self, width: int) -> pl.BlockSpec:
        """Of [B, K, S, width]."""
        group = self.problem.group
        return self._spec((self.problem.block_k, width), lambda b, h, i, j: (b, h // group, j, 0))

    def key_across(self, width: int) -> pl.BlockSpec:
        """Of [B, K, width, S]."""
        group = self.problem.group
        return self._spec((width, self.problem.block_k), lambda b, h, i, j: (b, h // group, 0, j))

    def segments(self, segments: tuple[Array, ...]) -> list[pl.BlockSpec]:
        """Of [B, 1, T] and [B, S, 1], where there are any."""
        p = self.problem

        def queries(*at):
            b, _, i, _ = self.locate(*at)
            return b, 0, i

        def keys(*at):
            b, _, _, j = self.locate(*at)
            return b, j, 0

        specs = [
            pl.BlockSpec((None, 1, p.block_q), queries),
            pl.BlockSpec((None, p.block_k, 1), keys),
        ]
        return specs if segments else []
