"""Attention with entropy from the stock fused cuDNN kernel, which knows nothing of entropy.

With scores s, `E = logsumexp(s) - sum_j p_j s_j`, and the mean score needs no array of scores:
`sum_j p_j s_j = scale q . (sum_j p_j k_j)`, which is what the kernel returns for the keys in the
place of the values. So the kernel runs on two sets of values, v and k.

The gradient is exact. The part of E's gradient that reaches q and k through the probabilities is
what the kernel's backward computes for the cotangent `-g scale q` of `sum_j p_j k_j`; the rest,
from q and k directly in the mean score, cancels against the gradient of logsumexp. Hence the
gradient of the second set of values is dropped and logsumexp is never differentiated.

Rounding: the kernel multiplies all scores by one number. That number is `D ** -0.5`; whatever else
a row's scale holds (a temperature, another scale) multiplies q and is rounded to q's dtype, a
relative 2^-9 of the scores in bfloat16. Output, entropy and gradients all use the rounded q.
Without either nothing is rounded. `sum_j p_j k_j` is rounded as an output is, so the kernel gets
the keys less their mean: a score common to a whole row, which the entropy does not depend on,
would otherwise cost it digits (emulated in bfloat16, keys whose common part was four times their
spread: entropies off by up to 0.05 nats, q's gradient by 2.5 %; without the mean 0.006 and 1.3 %).
What is left is most where a row sees few keys.
"""

import functools
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Float32, Int


def attend(
    query: Float[Array, "batch length heads head_dim"],
    key: Float[Array, "batch source kv_heads head_dim"],
    value: Float[Array, "batch source kv_heads head_dim"],
    row_scale: Float[Array, "batch heads length"],
    segment_ids: Int[Array, "batch length"] | None,
    *,
    causal: bool,
) -> tuple[Float[Array, "batch length heads head_dim"], Float[Array, "batch heads length"]]:
    """As `reference.attend`, by the cuDNN kernel; what it cannot do is refused beforehand."""
    del segment_ids
    factor = row_scale / query.shape[-1] ** -0.5
    return _attend(causal, query, key, value, factor)


def _forward_only(causal: bool, q, k, v, factor):
    return _attend_fwd(causal, q, k, v, factor)[0]


def _attend_fwd(causal, q, k, v, factor):
    scaled = (q.astype(jnp.float32) * _per_row(factor)).astype(q.dtype)
    centre, centred = _centred(k)
    # The centred keys are an argument of their own: their gradient is not that of the keys.
    (out, mean), pullback, logsumexp = jax.vjp(
        functools.partial(_two_means, causal), scaled, k, v, centred, has_aux=True
    )
    # The mean score in two sums: in one, what the keys have in common would round the rest.
    common, rest = (
        q.shape[-1] ** -0.5 * jnp.swapaxes((scaled.astype(jnp.float32) * x).sum(-1), 1, 2)
        for x in (jnp.repeat(centre, q.shape[2] // k.shape[2], axis=2), mean.astype(jnp.float32))
    )
    # Rounding may leave a row of one key slightly below 0.
    entropy = jnp.maximum(logsumexp - common - rest, 0.0)
    return (out, entropy), (pullback, q, scaled, factor)


def _attend_bwd(causal, residuals, cotangents):
    del causal
    pullback, q, scaled, factor = residuals
    dout, dentropy = cotangents
    weight = _per_row(-dentropy * q.shape[-1] ** -0.5)
    dmean_key = (weight * scaled.astype(jnp.float32)).astype(q.dtype)
    dscaled, dk, dv, _ = pullback((dout, dmean_key))
    dscaled = dscaled.astype(jnp.float32)
    dq = (dscaled * _per_row(factor)).astype(q.dtype)
    dfactor = jnp.sum(dscaled * q.astype(jnp.float32), -1)
    return dq, dk, dv, jnp.swapaxes(dfactor, 1, 2)


_attend = jax.custom_vjp(_forward_only, nondiff_argnums=(0,))
_attend.defvjp(_attend_fwd, _attend_bwd)


def _centred(k):
    """Keys less one key [B, 1, K, D], float32, that holds what they have in common.

    That is their mean where it exceeds their spread, and elsewhere 0, which costs the keys no
    rounding. A key that is not finite compares false and leaves the rows without it alone.
    """
    wide = k.astype(jnp.float32)
    mean = wide.mean(1, keepdims=True)
    common = jnp.where(2 * mean**2 > (wide**2).mean(1, keepdims=True), mean, 0.0)
    centre = common.astype(k.dtype).astype(jnp.float32)
    return centre, (wide - centre).astype(k.dtype)


def _per_row(x: Float[Array, "batch heads length"]) -> Float[Array, "batch length heads 1"]:
    return jnp.swapaxes(x, 1, 2)[..., None]


def _two_means(causal: bool, q, k, v, w):
    """Returns `(sum_j p_j v_j, sum_j p_j w_j)` and, beside them, logsumexp [B, H, T]."""
    batch, length, _, head_dim = q.shape
    stock = functools.partial(_stock, scale=head_dim**-0.5, causal=causal)
    if not _padded(batch, length, head_dim):
        out, logsumexp = stock(q, k, v)
        return (out, stock(q, k, w)[0]), logsumexp
    pad = [(0, 0), (0, 0), (0, 0), (0, head_dim)]
    both, logsumexp = stock(jnp.pad(q, pad), jnp.pad(k, pad), jnp.concatenate([v, w], -1))
    return (both[..., :head_dim], both[..., head_dim:]), logsumexp


def _padded(batch: int, length: int, head_dim: int) -> bool:
    """Whether one call of twice the head size is faster than two calls.

    Measured on one H200 with 12 heads of 64 and 16,384 tokens, forward and backward: .52 against
    .48 ms at T = 128, .59 against .62 at 512, 1.04 against 1.22 at 2048, 2.9 against 3.7 at 8192.
    """
    del batch
    return length >= 512 and head_dim <= 64


def _stock(
    q: Float[Array, "batch length heads width"],
    k: Float[Array, "batch source kv_heads width"],
    v: Float[Array, "batch source kv_heads width"],
    *,
    scale: float,
    causal: bool,
) -> tuple[Float[Array, "batch length heads width"], Float32[Array, "batch heads length"]]:
    """The cuDNN kernel: attention and the logsumexp of the scaled scores, in float32."""
    # `jax.nn.dot_product_attention` ends in this function, then rounds logsumexp to the output's
    # dtype: up to 0.016 nats off in bfloat16 for a logsumexp between 4 and 8.
    from jax._src.cudnn import fused_attention_stablehlo as fused

    mask = fused.MaskType.CAUSAL if causal else fused.MaskType.NO_MASK
    result: Any = fused.dot_product_attention(
        q, k, v, scale=scale, mask_type=mask, return_residual=True
    )
    return result
