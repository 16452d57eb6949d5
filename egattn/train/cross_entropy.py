"""Next-token cross entropy that never holds all logits."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

# Rows of logits in memory at a time, on each device: 0.8 GB of bfloat16 at a 50 K vocabulary. With
# fewer, the float32 gradient of the head, which every block reads and writes, costs more.
_BLOCK_ROWS = 8192


def cross_entropy(
    hidden: Float[Array, "batch length width"],
    head: Float[Array, "padded_vocab width"],
    targets: Int[Array, "batch length"],
    weights: Float[Array, "batch length"],
    vocab_size: int,
    shards: int = 1,
) -> Float[Array, ""]:
    """Sum of weighted next-token cross entropies, float32, nats.

    Works through blocks of positions. When differentiated, each block's gradient is formed while
    its logits exist, so the backward pass is one scaling and no logits are stored or recomputed.
    Logits have the dtype of `hidden`, as other products do; logsumexp and sums are float32.

    Args:
      hidden: Inputs of the vocabulary projection.
      head: Matrix of the vocabulary projection.
      targets: Next tokens, each in [0, vocab_size).
      weights: Weight of each position, e.g. 0 for padding.
      vocab_size: Number of real tokens; the head's later rows are padding and get no probability.
      shards: Number of devices that the batch is split over, so that each has enough rows.

    Returns:
      `sum weights * (logsumexp(logits) - logits[target])`.
    """
    return _cross_entropy(vocab_size, shards, hidden, head, targets, weights)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0, 1))
def _cross_entropy(vocab_size, shards, hidden, head, targets, weights):
    head = head.astype(hidden.dtype)

    def block(total, inputs):
        h, y, w = inputs
        _, _, nll = _logits(vocab_size, h, head, y)
        return total + jnp.sum(w * nll), None

    total, _ = jax.lax.scan(block, jnp.float32(0), _blocks(shards, hidden, targets, weights))
    return total


def _cross_entropy_fwd(vocab_size, shards, hidden, head, targets, weights):
    cast = head.astype(hidden.dtype)

    def block(carry, inputs):
        total, dhead = carry
        h, y, w = inputs
        logits, logsumexp, nll = _logits(vocab_size, h, cast, y)
        p = jnp.exp(logits - logsumexp[..., None])
        onehot = jnp.arange(logits.shape[-1]) == y[..., None]
        dlogits = ((p - onehot) * w[..., None]).astype(h.dtype)
        dh = jnp.einsum("btv,vd->btd", dlogits, cast)
        dhead += jnp.einsum("btv,btd->vd", dlogits, h, preferred_element_type=jnp.float32)
        return (total + jnp.sum(w * nll), dhead), (dh, nll)

    init = (jnp.float32(0), jnp.zeros(head.shape, jnp.float32))
    blocks = _blocks(shards, hidden, targets, weights)
    (total, dhead), (dhidden, nll) = jax.lax.scan(block, init, blocks)
    dhidden, nll = (_unblock(x, hidden.shape[1]) for x in (dhidden, nll))
    return total, (dhidden, dhead.astype(head.dtype), nll)


def _cross_entropy_bwd(vocab_size, shards, residuals, cotangent):
    dhidden, dhead, nll = ((x * cotangent).astype(x.dtype) for x in residuals)
    return dhidden, dhead, np.zeros(nll.shape, jax.dtypes.float0), nll


_cross_entropy.defvjp(_cross_entropy_fwd, _cross_entropy_bwd)


def _logits(vocab_size: int, h, head, y):
    """Logits [B, t, padded V], the lowest for padding, their logsumexp and the loss [B, t]."""
    logits = jnp.einsum("btd,vd->btv", h, head)
    if vocab_size < head.shape[0]:
        lowest = jnp.finfo(logits.dtype).min
        logits = jnp.where(jnp.arange(head.shape[0]) < vocab_size, logits, lowest)
    target = jnp.take_along_axis(logits, y[..., None], -1)[..., 0]
    logits = logits.astype(jnp.float32)
    logsumexp = jax.lax.platform_dependent(
        logits, cuda=_logsumexp, default=functools.partial(jax.nn.logsumexp, axis=-1)
    )
    return logits, logsumexp, logsumexp - target


def _logsumexp(x: Float[Array, "*batch n"]) -> Float[Array, "*batch"]:
    """One reduction, which reads memory once, of four neighbours at a time: for a GPU.

    Two passes cost more memory traffic, and single values twice the exponentials.
    """
    group = 4 if x.shape[-1] % 4 == 0 else 1
    neighbours = jnp.unstack(x.reshape(*x.shape[:-1], -1, group), axis=-1)
    top = functools.reduce(jnp.maximum, neighbours)
    total = functools.reduce(jnp.add, [jnp.exp(value - top) for value in neighbours])

    def merge(a, b):
        first = a[0] > b[0]
        small, large = jnp.where(first, b[1], a[1]), jnp.where(first, a[1], b[1])
        return jnp.maximum(a[0], b[0]), small * jnp.exp(-jnp.abs(a[0] - b[0])) + large

    empty = (jnp.finfo(jnp.float32).min, jnp.float32(0))
    top, total = jax.lax.reduce((top, total), empty, merge, (x.ndim - 1,))
    return top + jnp.log(total)


def _blocks(shards: int, *arrays):
    """Cuts [B, T, ...] along T into [n, B, t, ...], zero-padded, so that a batch stays sharded."""
    batch, length = arrays[0].shape[:2]
    # At least two blocks, whatever the batch: all logits at once are never needed.
    size = max(1, min(_BLOCK_ROWS * shards // batch, -(-length // 2)))
    count = -(-length // size)

    def cut(x):
        x = jnp.pad(x, [(0, 0), (0, count * size - length)] + [(0, 0)] * (x.ndim - 2))
        return jnp.moveaxis(x.reshape(batch, count, size, *x.shape[2:]), 1, 0)

    return tuple(cut(x) for x in arrays)


def _unblock(x, length: int):
    x = jnp.moveaxis(x, 0, 1)
    return x.reshape(x.shape[0], -1, *x.shape[3:])[:, :length]
