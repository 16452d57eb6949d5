"""Attention with entropy over a sequence split across devices: keys go round in a ring.

Every device keeps its queries. In each of the ring's steps it attends to the keys that it holds and
sends them on. Two parts of a row, with logsumexp `L_1`, `L_2`, entropies and outputs, make up

    L = log(e^L_1 + e^L_2),  w_i = e^(L_i - L),  o = sum_i w_i o_i,  E = L - sum_i w_i (L_i - E_i),

exactly and in any order. Backward, a second round: with the whole rows' logsumexp and entropy the
gradient of each part is that of `egattn.attention.chunked`, and the keys' gradients travel along.
"""

import functools
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from egattn.attention import chunked
from egattn.attention.chunked import Blocks


def attend(
    query: Float[Array, "batch length heads head_dim"],
    key: Float[Array, "batch length kv_heads head_dim"],
    value: Float[Array, "batch length kv_heads head_dim"],
    row_scale: Float[Array, "batch heads length"],
    segment_ids: Int[Array, "batch length"] | None,
    *,
    causal: bool,
    axis: str,
) -> tuple[Float[Array, "batch length heads head_dim"], Float[Array, "batch heads length"]]:
    """As `chunked.attend`, inside `jax.shard_map`, of a sequence that a mesh axis splits.

    Args:
      query: This device's queries; all devices hold equally many, in the order of the axis.
      key: Keys of the same positions.
      value: Values of the same positions.
      row_scale: Factors of the scores.
      segment_ids: Documents of the same positions.
      causal: Whether a query sees only keys at its own and earlier positions of the whole sequence.
      axis: Name of the mesh axis.
    """
    q, k, v, r = chunked.arrange(query, key, value, row_scale)
    out, entropy = _attend(axis, causal, q, k, v, r, segment_ids)
    return chunked.restore(out, entropy)


def _forward_only(axis: str, causal: bool, q, k, v, r, segments) -> Any:
    return _attend_fwd(axis, causal, q, k, v, r, segments)[0]


def _attend_fwd(axis, causal, q, k, v, r, segments):
    def add(blocks: Blocks, total, keys):
        key, value, key_segments = keys
        return _merge(total, chunked.forward(blocks, q, key, value, r, (segments, key_segments)))

    def step(carry, i):
        total, keys = carry
        total = _visit(axis, causal, i, q, add, total, keys)
        return (total, _send_on(axis, keys)), None

    nothing = (jnp.zeros(q.shape, jnp.float32), jnp.zeros(r.shape), jnp.full(r.shape, -jnp.inf))
    steps = jnp.arange(jax.lax.axis_size(axis))
    (total, _), _ = jax.lax.scan(step, (nothing, (k, v, segments)), steps)
    out, entropy, logsumexp = total
    out = out.astype(q.dtype)
    return (out, entropy), (q, k, v, r, segments, out, entropy, logsumexp)


def _attend_bwd(axis, causal, residuals, cotangents):
    backward = functools.partial(_backward, axis, causal)
    return chunked.cotangents_of_inputs(backward, residuals, cotangents)


_attend = jax.custom_vjp(_forward_only, nondiff_argnums=(0, 1))
_attend.defvjp(_attend_fwd, _attend_bwd)


def _backward(axis, causal, rows, k, v, segments):
    """As `chunked.backward`, over the keys of all devices."""
    queries = rows[0]

    def add(blocks: Blocks, total, keys):
        key, value, key_segments = keys
        more = chunked.backward(blocks, rows, key, value, (segments[0], key_segments))
        return jax.tree.map(jnp.add, total, more)

    def step(carry, i):
        (du, dk, dv), keys = carry
        du, dk, dv = _visit(axis, causal, i, queries, add, (du, dk, dv), keys)
        # After the last step the keys' gradients are where the keys are at home.
        dk, dv, keys = _send_on(axis, (dk, dv, keys))
        return ((du, dk, dv), keys), None

    zeros = tuple(jnp.zeros(x.shape, jnp.float32) for x in (queries, k, v))
    steps = jnp.arange(jax.lax.axis_size(axis))
    (total, _), _ = jax.lax.scan(step, (zeros, (k, v, segments[1])), steps)
    return total


def _visit(axis: str, causal: bool, step, q, add, total, keys) -> Any:
    """Adds the keys that this device holds after so many steps: they have come as many places."""
    group, length = q.shape[2:4]
    blocks = functools.partial(Blocks.of, group, length, length)
    if not causal:
        return add(blocks(False), total, keys)
    # Later positions than the queries', earlier ones, the same ones.
    branches = [
        lambda total, keys: total,
        functools.partial(add, blocks(False)),
        functools.partial(add, blocks(True)),
    ]
    earlier = (jax.lax.axis_index(axis) >= step).astype(jnp.int32)
    return jax.lax.switch(jnp.where(step == 0, 2, earlier), branches, total, keys)


def _send_on(axis: str, arrays):
    size = jax.lax.axis_size(axis)
    return jax.lax.ppermute(arrays, axis, [(i, (i + 1) % size) for i in range(size)])


def _merge(a, b):
    """Two parts (output, entropy, logsumexp) of the same rows; -inf stands for a part of no key."""
    logsumexp = jnp.logaddexp(a[2], b[2])
    out, entropy = jnp.zeros_like(a[0]), jnp.where(logsumexp == -jnp.inf, 0.0, logsumexp)
    for part_out, part_entropy, part in (a, b):
        empty = part == -jnp.inf
        weight = jnp.where(empty, 0.0, jnp.exp(jnp.where(empty, 0.0, part - logsumexp)))
        out += weight[..., None] * part_out
        entropy -= weight * jnp.where(empty, 0.0, part - part_entropy)
    return out, entropy, logsumexp
