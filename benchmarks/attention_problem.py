"""Random attention problems of a named shape, and the errors of their solutions."""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from egattn.attention.specs import AttentionSpec
from egattn.doctor import oracle

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

    Returns:
      Norm-wise relative errors by name; of the entropy the largest difference in nats.
    """
    entropy = len(results) == 5
    names = ["output", *(["entropy"] if entropy else []), "dq", "dk", "dv"]
    expected = _expected(spec, seed, entropy)
    queries, keys = _first_heads(spec)
    parts = {"entropy": (slice(1), queries), "dk": (slice(1), ..., keys, slice(None))}
    parts["dv"] = parts["dk"]
    found: dict[str, float] = {}
    for name, y in zip(names, results, strict=True):
        part = _wide(y[parts.get(name, (slice(1), slice(None), queries))])
        if name == "entropy":
            found[name] = float(np.abs(part - expected[name]).max())
        else:
            found[name] = oracle.relative_error(part, expected[name])
    return found


@functools.lru_cache(maxsize=2)
def _expected(spec: AttentionSpec, seed: int, entropy: bool) -> dict[str, oracle.Array]:
    """The float64 solution of the first heads; every implementation asks for the same."""
    x = make_inputs(spec, seed)
    queries, keys = _first_heads(spec)
    solution = oracle.solve(
        oracle.Problem(
            query=_wide(x.query[:1, :, queries]),
            key=_wide(x.key[:1, :, keys]),
            value=_wide(x.value[:1, :, keys]),
            out_cotangent=_wide(x.out_cotangent[:1, :, queries]),
            entropy_cotangent=_wide(x.entropy_cotangent[:1, queries]) * entropy,
            causal=spec.causal,
            segment_ids=None if x.segment_ids is None else np.asarray(x.segment_ids[:1]),
        )
    )
    gradients = {f"d{name[0]}": gradient for name, gradient in solution.gradients.items()}
    return {"output": solution.out, "entropy": solution.entropy, **gradients}


def _first_heads(spec: AttentionSpec) -> tuple[slice, slice]:
    """Query heads and key heads whose errors are measured."""
    keys = min(spec.kv_heads, 2 if spec.length <= _TWO_HEADS else 1)
    return slice(keys * spec.heads // spec.kv_heads), slice(keys)


def _wide(x: jax.Array) -> oracle.Array:
    return np.asarray(x.astype(jnp.float32), np.float64)
