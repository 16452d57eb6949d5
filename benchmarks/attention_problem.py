"""Random attention problems of a named shape, and the errors of their solutions."""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks import attention_oracle
from egattn.attention.specs import AttentionSpec

# Positions up to which errors cover two key heads instead of one.
_TWO_HEADS = 512


class Inputs(NamedTuple):
    """One call's arguments: everything that a compiler could fold if it knew it."""

    query: jax.Array
    key: jax.Array
    value: jax.Array
    out_cotangent: jax.Array
    entropy_cotangent: jax.Array
    segment_ids: jax.Array | None


def make_inputs(spec: AttentionSpec, seed: int) -> Inputs:
    """Unit normal inputs."""
    queries = (spec.batch, spec.length, spec.heads, spec.head_dim)
    keys = (spec.batch, spec.length, spec.kv_heads, spec.head_dim)
    random = iter(jax.random.split(jax.random.key(seed), 5))
    segment_ids = None
    if spec.documents > 1:
        ids = jnp.arange(spec.length, dtype=jnp.int32) * spec.documents // spec.length
        segment_ids = jnp.tile(ids, (spec.batch, 1))
    return Inputs(
        query=jax.random.normal(next(random), queries, spec.dtype),
        key=jax.random.normal(next(random), keys, spec.dtype),
        value=jax.random.normal(next(random), keys, spec.dtype),
        out_cotangent=jax.random.normal(next(random), queries, spec.dtype),
        entropy_cotangent=jax.random.normal(next(random), (queries[0], spec.heads, queries[1])),
        segment_ids=segment_ids,
    )


def poison(x: Inputs) -> None:
    """Fills the memory that the next outputs will take with NaN: an unwritten element shows."""
    arrays = [jnp.full_like(leaf, jnp.nan) for leaf in x[:5] for _ in range(3)]
    jax.block_until_ready(arrays)


def measure_errors(
    spec: AttentionSpec, seed: int, results: tuple[jax.Array, ...]
) -> dict[str, float]:
    """Errors of the first window's first heads against float64.

    Args:
      spec: The shape.
      seed: The seed of the inputs.
      results: Output, entropy, and the gradients of query, key and value; or all but the entropy
        of attention that has none.
    """
    entropy = len(results) == 5
    names = ["output", *(["entropy"] if entropy else []), "dq", "dk", "dv"]
    found: dict[str, list[attention_oracle.Array]] = {name: [] for name in names}
    wanted: dict[str, list[attention_oracle.Array]] = {name: [] for name in names}
    for k, expected in enumerate(_expected(spec, seed, entropy)):
        heads = _query_heads(spec, k)
        for name, y in zip(names, results, strict=True):
            index = {"entropy": (0, heads), "dk": (0, ..., k, slice(None))}
            index["dv"] = index["dk"]
            part = _wide(y[index.get(name, (0, slice(None), heads))])
            found[name].append(part.swapaxes(0, 1) if name in ("output", "dq") else part)
            wanted[name].append(expected[name])
    return attention_oracle.errors(
        {name: np.stack(y) for name, y in found.items()},
        {name: np.stack(y) for name, y in wanted.items()},
    )


@functools.lru_cache(maxsize=2)
def _expected(spec: AttentionSpec, seed: int, entropy: bool) -> list[dict]:
    """Float64 solutions of the first key heads; every implementation asks for the same."""
    x = make_inputs(spec, seed)
    ids = None if x.segment_ids is None else np.asarray(x.segment_ids[0])
    solutions = []
    for k in range(min(spec.kv_heads, 2 if spec.length <= _TWO_HEADS else 1)):
        heads = _query_heads(spec, k)
        q, do = (_wide(y[0, :, heads]).swapaxes(0, 1) for y in (x.query, x.out_cotangent))
        key, value = (_wide(y[0, :, k]) for y in (x.key, x.value))
        de = _wide(x.entropy_cotangent[0, heads]) * entropy
        solutions.append(
            attention_oracle.solve(q, key, value, do, de, causal=spec.causal, segment_ids=ids)
        )
    return solutions


def _query_heads(spec: AttentionSpec, k: int) -> slice:
    group = spec.heads // spec.kv_heads
    return slice(k * group, (k + 1) * group)


def _wide(x: jax.Array) -> attention_oracle.Array:
    return np.asarray(x.astype(jnp.float32), np.float64)
