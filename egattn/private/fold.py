"""A trained decoder's parameters folded into the few arrays that a private forward pass multiplies.

All of it is exact and costs the two parties nothing, because the server does it beforehand: gains
and biases of layer norm, weight and spectral norm, alpha, beta, leaky-ReLU slopes and the scale of
the scores go into matrices; 1/t stays an array of its own, one entry per head and position.
"""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from egattn.model import DecoderConfig, Linear
from egattn.model.config import FeedForwardKind
from egattn.model.layers import per_layer

Weights = dict[str, np.ndarray]
"""Float32 arrays by dotted name, what the server holds."""

_EPSILON = 1e-5


def fold(config: DecoderConfig, variables: dict[str, Any], length: int, scale: float) -> Weights:
    """Returns the arrays that `egattn.private.program.forward` takes.

    The program's residual stream is the network's divided by `scale` and, from layer to layer, by
    the product of the betas so far.

    Args:
      config: The decoder's configuration.
      variables: Its variables, as `Decoder.init` returns them; arrays of any kind.
      length: Positions T of the program, at most the context length.
      scale: Size of the residual stream's entries at the start, about.

    Raises:
      ValueError: If a parameter is not finite, or a beta or alpha is 0.
    """
    _check_finite(variables)
    layers = jax.tree.map(lambda x: np.asarray(x, np.float64), per_layer(config, variables))
    params = layers["params"]
    blocks = [
        {name: tree[f"blocks_{i}"] for name, tree in layers.items()}
        for i in range(config.num_layers)
    ]
    embedding = params["token_embedding"]["embedding"][: config.vocab_size]
    weights = {
        "embedding": embedding / scale,
        "position": params["position_embedding"]["embedding"][:length] / scale,
    }
    for layer, (kind, block) in enumerate(zip(config.layer_kinds, blocks, strict=True)):
        folded, scale = _block(config, kind, block, params.get("slope"), length, scale, layer)
        weights |= {f"layers.{layer}.{name}": value for name, value in folded.items()}
    head = embedding if config.tie_embeddings else params["head"][: config.vocab_size]
    norm = _Norm(params.get("final_norm"), scale)
    weights |= _named("head", *norm.into(head.T, None))
    weights |= norm.epsilon("final_norm")
    return {name: np.asarray(value, np.float32) for name, value in weights.items()}


def _check_finite(variables: dict[str, Any]) -> None:
    for path, leaf in jax.tree.leaves_with_path(variables):
        if not np.isfinite(np.asarray(leaf)).all():
            raise ValueError(f"expected finite weights, got others in {jax.tree_util.keystr(path)}")


class _Norm:
    """What a layer norm, or none, does to the matrix behind it.

    The norm of `scale x` is that of x, up to the sign and with another epsilon.
    """

    def __init__(self, params: dict[str, Any] | None, scale: float):
        self._params, self._scale = params, scale

    def into(self, kernel: np.ndarray, bias: np.ndarray | None) -> tuple[np.ndarray, Any]:
        """The matrix [d, n] and bias that do the same without gain, bias and scale before them."""
        if self._params is None:
            return self._scale * kernel, bias
        gain, shift = (np.asarray(self._params[name], np.float64) for name in ("scale", "bias"))
        shifted = shift @ kernel
        bias = shifted if bias is None else bias + shifted
        return np.sign(self._scale) * gain[:, None] * kernel, bias

    def epsilon(self, name: str) -> Weights:
        """What is added to the variance, if there is a norm."""
        return (
            {} if self._params is None else {f"{name}.epsilon": np.array(_EPSILON / self._scale**2)}
        )


def _block(
    config: DecoderConfig,
    kind: FeedForwardKind,
    block: dict[str, Any],
    slope: np.ndarray | None,
    length: int,
    scale: float,
    layer: int,
) -> tuple[Weights, float]:
    """One layer's arrays, and the scale of the residual stream behind it."""
    params = block["params"]
    norm = _Norm(params.get("attention_norm"), scale)
    weights = norm.epsilon("attention_norm") | _attention(config, block, norm, length, scale)
    if kind == "none":
        return weights, scale
    alpha, beta = (float(params.get(name, 1.0)) for name in ("alpha", "beta"))
    if alpha == 0 or beta == 0:
        raise ValueError(f"layer {layer}: cannot fold alpha = {alpha} and beta = {beta}, one is 0")
    norm = _Norm(params.get("ffn_norm"), scale)
    slope = params["feed_forward"].get("slope", slope)
    weights |= norm.epsilon("ffn_norm")
    weights |= _feed_forward(config, kind, block, norm, slope, 1 / (alpha * beta * scale))
    return weights, beta * scale


def _attention(
    c: DecoderConfig, block: dict[str, Any], norm: _Norm, length: int, scale: float
) -> Weights:
    kernels, biases = [], []
    for name, heads in (("q", c.num_heads), ("k", c.kv_heads), ("v", c.kv_heads)):
        kernel, bias = norm.into(*_linear(c, block, "attention", name, heads * c.head_dim))
        # A key bias adds one number to all scores of a row, which softmax ignores.
        bias = np.zeros(kernel.shape[1]) if bias is None or name == "k" else bias
        factor = c.head_dim**-0.5 if name == "q" else 1.0
        kernels.append(factor * kernel)
        biases.append(factor * bias)
    kernel, bias = _linear(c, block, "attention", "o", c.embed_dim)
    weights = _named("qkv", np.concatenate(kernels, 1), np.concatenate(biases))
    weights |= _named("out", kernel / scale, None if bias is None else bias / scale)
    if c.temperature is not None:
        log_temperature = np.asarray(block["params"]["attention"]["log_temperature"], np.float64)
        weights["inverse_temperature"] = np.exp(-log_temperature[:, :length])
    return weights


def _feed_forward(
    c: DecoderConfig,
    kind: FeedForwardKind,
    block: dict[str, Any],
    norm: _Norm,
    slope: np.ndarray | None,
    factor: float,
) -> Weights:
    """A linear part [d, d], a part with an activation, or both.

    `slope h + (1 - slope) relu(h)` is a leaky ReLU: its first half joins the linear part.
    """

    def scaled(name: str, kernel: np.ndarray, bias: np.ndarray | None) -> Weights:
        return _named(name, factor * kernel, None if bias is None else factor * bias)

    if kind == "fused":
        kernel, bias = norm.into(*_linear(c, block, "feed_forward", "fused", c.embed_dim))
        return scaled("linear", kernel, bias)
    up, up_bias = norm.into(*_linear(c, block, "feed_forward", "up", c.ffn_dim))
    down, down_bias = _linear(c, block, "feed_forward", "down", c.embed_dim)
    if c.activation in ("gelu", "relu"):
        return _named("up", up, up_bias) | scaled("down", down, down_bias)
    share = np.ones(c.ffn_dim)
    if slope is not None:
        share = share * slope
    through = share[:, None] * down
    bias = _sum(None if up_bias is None else up_bias @ through, down_bias)
    weights = scaled("linear", up @ through, bias)
    if c.activation == "leaky_relu":
        weights |= _named("up", up, up_bias) | scaled("down", down - through, None)
    return weights


def _linear(
    c: DecoderConfig, block: dict[str, Any], part: str, name: str, features: int
) -> tuple[np.ndarray, np.ndarray | None]:
    """Matrix and bias of a layer as they multiply, float64."""
    matrix = name if part == "attention" else "ffn"
    layer = Linear(
        features,
        use_bias=matrix in c.biases,
        reparam=c.weight_reparam if matrix in c.reparam_matrices else "none",
    )
    variables = {key: tree[part][name] for key, tree in block.items() if name in tree.get(part, {})}
    variables = jax.tree.map(jnp.asarray, variables)
    inputs = variables["params"]["kernel"].shape[0]
    # Ignored: Linen types what apply returns as anything or a pair with variables.
    # `apply` returns what the method does, which its type does not say.
    kernel, bias = layer.apply(variables, inputs, method="weights")  # pyright: ignore[reportGeneralTypeIssues]
    return np.asarray(kernel, np.float64), None if bias is None else np.asarray(bias, np.float64)


def _named(name: str, kernel: np.ndarray, bias: np.ndarray | None) -> Weights:
    weights = {f"{name}.kernel": kernel}
    return weights if bias is None else {**weights, f"{name}.bias": bias}


def _sum(a: np.ndarray | None, b: np.ndarray | None) -> np.ndarray | None:
    return b if a is None else a if b is None else a + b
