"""Attention of one new position per path over the keys and values kept so far.

K paths continue each prompt, and have its keys and values in common. Those of up to N generated
tokens are written into tables of N P entries as they come: P = K paths that may continue each other
share one table, or each path has its own, P = 1. Scores are formed with all entries of a table, so
a shared one is for few paths. Tables and heads are one axis, as products want it: what is updated
and reshaped within a loop is copied by XLA on CPUs, in every turn.
"""

from typing import NamedTuple

import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Bool, Float, Int

from egattn.attention.sums import row_sum


class Place(NamedTuple):
    """Where the next token of each path belongs."""

    lengths: Int[Array, " batch"]
    """Length of each prompt; what its keys have behind it is not read."""
    step: Int[Array, ""]
    """Number n of this token among the generated ones."""
    slots: Int[Array, "batch paths new"] | None
    """Whose n-th token each path sees as its own, where paths share a table: a path that continues
    another one copies its row of this, not keys and values. None where each has a table."""


class Cached(NamedTuple):
    """Keys or values."""

    prompt: Float[Array, "prompts_kv_heads length head_dim"]
    """Of the prompts."""
    new: Float[Array, "tables_kv_heads entries head_dim"]
    """Of the generated tokens, the one at hand included: entry n P + p is the n-th of path p."""


def prompt_layout(
    x: Float[Array, "prompts length kv_heads head_dim"],
) -> Float[Array, "prompts_kv_heads length head_dim"]:
    """Keys or values of prompts as `Cached` has them."""
    return jnp.swapaxes(x, 1, 2).reshape(-1, x.shape[1], x.shape[3])


def write_next(
    table: Float[Array, "tables_kv_heads entries head_dim"],
    x: Float[Array, "paths 1 kv_heads head_dim"],
    place: Place,
) -> Float[Array, "tables_kv_heads entries head_dim"]:
    """Puts the next key or value of all paths into the tables."""
    _, _, kv_heads, size = x.shape
    rows = x.reshape(table.shape[0] // kv_heads, -1, kv_heads, size)
    rows = jnp.swapaxes(rows, 1, 2).reshape(table.shape[0], -1, size)
    return lax.dynamic_update_slice_in_dim(table, rows, place.step * rows.shape[1], 1)


def attend_cached(
    query: Float[Array, "paths 1 heads head_dim"],
    keys: Cached,
    values: Cached,
    place: Place,
    temperature: Float[Array, "paths heads 1"] | None = None,
) -> tuple[Float[Array, "paths 1 heads head_dim"], Float[Array, "paths heads 1"]]:
    """Returns the output in the query's dtype and the entropy in nats, float32.

    Args:
      query: Query of each path's new position, the paths of a prompt side by side.
      keys: Keys.
      values: Values.
      place: Which of them each path sees.
      temperature: Softmax temperature; default 1.
    """
    paths, _, heads, head_dim = query.shape
    prompts, length = place.lengths.size, keys.prompt.shape[1]
    kv_heads = keys.prompt.shape[0] // prompts
    owner = None if place.slots is None else _owner(place.slots)
    q = query.reshape(paths, kv_heads, -1, head_dim)
    s = jnp.concatenate([_scores(q, keys.prompt), _scores(q, keys.new, owner)], -1)
    scale = head_dim**-0.5 / (1.0 if temperature is None else temperature)
    s *= jnp.broadcast_to(scale, (paths, heads, 1)).reshape(paths, kv_heads, -1, 1)
    seen = [jnp.arange(length) < place.lengths[:, None], jnp.arange(s.shape[-1] - length)]
    seen[1] = jnp.broadcast_to(seen[1] <= place.step, (prompts, seen[1].size))
    seen = jnp.repeat(jnp.concatenate(seen, 1), paths // prompts, 0)[:, None, None]
    # The new position itself is always seen.
    x = jnp.where(seen, s, -jnp.inf)
    x = jnp.where(seen, x - x.max(-1, keepdims=True), 0.0)
    e = jnp.where(seen, jnp.exp(x), 0.0)
    total = row_sum(e)
    weights = (e / total[..., None]).astype(values.new.dtype)
    out = _output(weights[..., :length], values.prompt)
    out += _output(weights[..., length:], values.new, owner)
    entropy = jnp.log(total) - row_sum(e * x) / total
    return out.reshape(query.shape).astype(query.dtype), entropy.reshape(paths, -1, 1)


def _owner(slots: Int[Array, "batch paths new"]) -> Bool[Array, "batch 1 paths 1 new slots"]:
    """Whether path p sees slot j's n-th token."""
    return (slots[..., None] == jnp.arange(slots.shape[1]))[:, None, :, None]


def _scores(
    q: Float[Array, "paths kv_heads group head_dim"],
    keys: Float[Array, "tables_kv_heads entries head_dim"],
    owner: Bool[Array, "tables 1 paths_each 1 new slots"] | None = None,
) -> Float[Array, "paths kv_heads group seen"]:
    """Products of queries and the keys that they see."""
    paths, kv_heads, group, size = q.shape
    split = (keys.shape[0] // kv_heads, -1, kv_heads, group)
    rows = jnp.swapaxes(q.reshape(*split, size), 1, 2).reshape(keys.shape[0], -1, size)
    # Keys first, and fixed so: XLA's products on CPUs copy their second operand.
    s = jnp.einsum("tsd,trd->tsr", keys, rows, preferred_element_type=jnp.float32)
    s = jnp.swapaxes(lax.optimization_barrier(s), 1, 2)
    s = s.reshape(split[0], kv_heads, -1, group, keys.shape[1])
    if owner is not None:
        s = jnp.where(owner, s.reshape(*s.shape[:-1], *owner.shape[-2:]), 0.0).sum(-1)
    return jnp.swapaxes(s, 1, 2).reshape(paths, kv_heads, group, -1)


def _output(
    weights: Float[Array, "paths kv_heads group seen"],
    values: Float[Array, "tables_kv_heads entries head_dim"],
    owner: Bool[Array, "tables 1 paths_each 1 new slots"] | None = None,
) -> Float[Array, "paths kv_heads group head_dim"]:
    """Sums of the values by the weights of those that each path sees."""
    paths, kv_heads, group, _ = weights.shape
    tables = values.shape[0] // kv_heads
    w = jnp.swapaxes(weights.reshape(tables, -1, *weights.shape[1:]), 1, 2)
    if owner is not None:
        w = jnp.where(owner, w[..., None], 0)
    w = w.reshape(values.shape[0], -1, values.shape[1])
    out = jnp.einsum("trs,tsd->trd", w, values, preferred_element_type=jnp.float32)
    out = jnp.swapaxes(out.reshape(tables, kv_heads, -1, group, values.shape[2]), 1, 2)
    return out.reshape(paths, kv_heads, group, -1)
