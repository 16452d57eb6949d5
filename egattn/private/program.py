"""The decoder as two parties compute it: sums, products, comparisons and a few functions.

The same function as `egattn.Decoder`, written for arithmetic on secret shares in fixed point:
tokens come one-hot, so that the embedding is a product; no number stands for minus infinity, of
which a fixed-point exponential makes garbage; every function is spelled out.
"""

import functools
import math
from collections.abc import Mapping
from typing import Any, Literal

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from egattn.model import DecoderConfig

Gelu = Literal["tanh", "polynomial"]

# Degree 4 on [0, 3.25], least largest error (1.7e-3) of gelu(z) - z / 2 in its tanh form, joined to
# z / 2 at the end. Fitted by linear programming; tests/private/test_program.py measures the error.
_GELU = (0.00116778, -0.03579107, 0.53837701, -0.18264345, 0.02082485)
_GELU_END = 3.25

PIECE = 4096
"""Most rows and columns of a matrix that is multiplied as a whole."""

_scoped = jax.named_scope


def forward(
    config: DecoderConfig,
    gelu: Gelu,
    weights: Mapping[str, Array],
    tokens: Float[Array, "length vocab"],
) -> Float[Array, "length vocab"]:
    """Returns the next-token logits of one sequence.

    Args:
      config: The decoder's configuration.
      gelu: Form of GELU, where the network has any.
      weights: What `egattn.private.fold.fold` returns.
      tokens: One-hot tokens.
    """
    x = embed(weights, tokens)
    for layer in range(config.num_layers):
        with _scoped(f"layers.{layer}"):
            x = block(config, gelu, sub_weights(weights, f"layers.{layer}."), x)
    if config.final_norm == "layer_norm":
        x = layer_norm(weights["final_norm.epsilon"], x)
    return linear("head", weights, x)


def sub_weights(weights: Mapping[str, Any], prefix: str) -> dict[str, Any]:
    """The weights whose names begin with a prefix, without it."""
    return {name.removeprefix(prefix): w for name, w in weights.items() if name.startswith(prefix)}


@_scoped("embedding")
def embed(
    weights: Mapping[str, Array], tokens: Float[Array, "length vocab"]
) -> Float[Array, "length width"]:
    """Token and position embedding."""
    return product(tokens, weights["embedding"]) + weights["position"]


def block(
    config: DecoderConfig,
    gelu: Gelu,
    weights: Mapping[str, Array],
    x: Float[Array, "length width"],
) -> Float[Array, "length width"]:
    """One layer of a decoder."""
    y = x if config.pre_norm == "none" else layer_norm(weights["attention_norm.epsilon"], x)
    x = x + attention(config, weights, y)
    if "linear.kernel" not in weights and "up.kernel" not in weights:
        return x
    y = x if config.pre_norm == "none" else layer_norm(weights["ffn_norm.epsilon"], x)
    if "linear.kernel" in weights:
        x = x + linear("linear", weights, y)
    if "up.kernel" in weights:
        h = activate(config, gelu, linear("up", weights, y))
        x = x + linear("down", weights, h)
    return x


def attention(
    config: DecoderConfig, weights: Mapping[str, Array], x: Float[Array, "length width"]
) -> Float[Array, "length width"]:
    """Causal multi-head attention."""
    query, key, value = heads(config, linear("qkv", weights, x))
    if "inverse_temperature" in weights:
        query = cool(query, weights["inverse_temperature"])
    out = values(softmax(scores(query, key)), value)
    return linear("out", weights, jnp.swapaxes(out, 0, 1).reshape(x.shape))


def heads(
    config: DecoderConfig, qkv: Float[Array, "length features"]
) -> list[Float[Array, "heads length head_dim"]]:
    """Splits a row into query, key and value heads; key heads are repeated for their group."""
    counts = (config.num_heads, config.kv_heads, config.kv_heads)
    split = qkv.reshape(qkv.shape[0], sum(counts), config.head_dim).swapaxes(0, 1)
    starts = (0, counts[0], counts[0] + counts[1])
    parts = (split[start : start + count] for start, count in zip(starts, counts, strict=True))
    return [jnp.repeat(x, config.num_heads // len(x), axis=0) for x in parts]


@_scoped("temperature")
def cool(
    query: Float[Array, "heads length head_dim"], inverse: Float[Array, "heads length"]
) -> Float[Array, "heads length head_dim"]:
    """Divides each query by its temperature."""
    return query * inverse[..., None]


@_scoped("scores")
def scores(
    query: Float[Array, "heads length head_dim"], key: Float[Array, "heads length head_dim"]
) -> Float[Array, "heads length length"]:
    """Products of queries and keys."""
    return query @ jnp.swapaxes(key, 1, 2)


@_scoped("softmax")
def softmax(s: Float[Array, "heads length length"]) -> Float[Array, "heads length length"]:
    """Softmax over the keys that each query sees.

    A key that it does not see borrows the score of the first key, which all see, and gets weight 0
    afterwards: which these are is public, so both cost nothing.
    """
    visible = jnp.tril(jnp.ones(s.shape[1:], bool))
    s = jnp.where(visible, s, s[..., :1])
    e = jnp.where(visible, jnp.exp(s - s.max(-1, keepdims=True)), 0.0)
    return e * (1.0 / e.sum(-1, keepdims=True))


@_scoped("values")
def values(
    probabilities: Float[Array, "heads length length"],
    value: Float[Array, "heads length head_dim"],
) -> Float[Array, "heads length head_dim"]:
    """Weighted sums of values."""
    return probabilities @ value


@_scoped("layer_norm")
def layer_norm(
    epsilon: Float[Array, ""], x: Float[Array, "length width"]
) -> Float[Array, "length width"]:
    """Layer norm without gain and bias, which are in the matrices behind it."""
    share = 1 / x.shape[-1]
    x = x - x.sum(-1, keepdims=True) * share
    variance = (x * x).sum(-1, keepdims=True) * share
    return x * jax.lax.rsqrt(variance + epsilon)


def linear(
    name: str, weights: Mapping[str, Array], x: Float[Array, "length inputs"]
) -> Float[Array, "length outputs"]:
    """Product with a matrix, and a bias if there is one."""
    with _scoped(name):
        y = product(x, weights[f"{name}.kernel"])
        bias = weights.get(f"{name}.bias")
        return y if bias is None else y + bias


def product(
    x: Float[Array, "length inputs"], kernel: Float[Array, "inputs outputs"]
) -> Float[Array, "length outputs"]:
    """`x @ kernel`, in pieces if the kernel is as large as a vocabulary.

    A whole matrix is encoded at once, each entry many times: with 768 × 8192 both parties together
    took 20 GB. Pieces cost their inputs, or their outputs, again: 2 and 3 MB for 128 positions.
    """
    rows, columns = (range(0, size, PIECE) for size in kernel.shape)
    sums = (
        [x[:, i : i + PIECE] @ kernel[i : i + PIECE, j : j + PIECE] for i in rows] for j in columns
    )
    return jnp.concatenate([functools.reduce(jnp.add, pieces) for pieces in sums], axis=1)


@_scoped("activation")
def activate(
    config: DecoderConfig, gelu: Gelu, h: Float[Array, "length hidden"]
) -> Float[Array, "length hidden"]:
    """The activation; of a leaky ReLU the part that is no linear map."""
    if config.activation in ("relu", "leaky_relu"):
        return jnp.maximum(h, 0.0)
    return gelu_polynomial(h) if gelu == "polynomial" else gelu_tanh(h)


def gelu_tanh(x: Float[Array, "..."]) -> Float[Array, "..."]:
    """GELU in its tanh form, as GPT-2 has it.

    Reference:
      Hendrycks & Gimpel, arXiv 1606.08415, Section 2.
    """
    inner = math.sqrt(2 / math.pi) * (x + 0.044715 * (x * x * x))
    return 0.5 * x * (1.0 + jnp.tanh(inner))


def gelu_polynomial(x: Float[Array, "..."]) -> Float[Array, "..."]:
    """GELU within 1.8e-3 of the tanh form: two comparisons and two products.

    gelu(x) - x / 2 is even: a polynomial in |x| up to 3.25, and |x| / 2 beyond.
    """
    size = jnp.maximum(x, -x)
    z = jnp.minimum(size, _GELU_END)
    square = z * z
    c0, c1, c2, c3, c4 = _GELU
    near = square * (c4 * square + c3 * z + c2) + c1 * z + c0
    return 0.5 * (x + size - z) + near


def program(config: DecoderConfig, gelu: Gelu):
    """`forward` of a config, a function of weights and one-hot tokens."""
    return functools.partial(forward, config, gelu)
