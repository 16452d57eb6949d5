"""A linear layer whose matrix can be weight- or spectrally normalised."""

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from egattn.model.config import DType, Reparam

SPECTRAL = "spectral"
"""Collection of the power iteration's vectors; not trained, updated when mutable."""


class Linear(nn.Module):
    """`x @ W + b`, where W is a plain matrix or a gain times a normalised one.

    With "weight_norm" each output feature is `gain_j V_j / |V_j|`; with "spectral_norm" the matrix
    is `gain V / sigma(V)`, sigma the largest singular value, followed by one power iteration per
    training step. Gains start at the norms themselves, so every form starts equal to the plain
    layer (which `nn.WeightNorm` and `nn.SpectralNorm` do not).

    Reference:
      Salimans & Kingma, arXiv 1602.07868; Miyato et al., arXiv 1802.05957; for the learned gain
      and the exact start, Zhai et al., arXiv 2303.06296.
    """

    features: int
    """Output width."""
    use_bias: bool = False
    """Whether a bias is added; it starts at 0."""
    train_bias: bool = True
    """Whether the bias has a gradient."""
    reparam: Reparam = "none"
    """Parametrisation of the matrix."""
    init_std: float = 0.02
    """Standard deviation of the initial matrix."""
    dtype: DType = "float32"
    """Precision of the product and of the result."""

    @nn.compact
    def __call__(self, x: Float[Array, "*batch inputs"]) -> Float[Array, "*batch outputs"]:
        """Returns [..., features] in `dtype`."""
        shape = (x.shape[-1], self.features)
        kernel = self.param("kernel", nn.initializers.normal(self.init_std), shape)
        if self.reparam == "weight_norm":
            kernel = self._weight_norm(kernel)
        elif self.reparam == "spectral_norm":
            kernel = self._spectral_norm(kernel)
        y = jnp.dot(x.astype(self.dtype), kernel.astype(self.dtype))
        if self.use_bias:
            bias = self.param("bias", nn.initializers.zeros, (self.features,))
            bias = bias if self.train_bias else jax.lax.stop_gradient(bias)
            y += bias.astype(self.dtype)
        return y

    def _weight_norm(self, kernel: Float[Array, "inputs outputs"]):
        norm = jnp.linalg.norm(kernel, axis=0)
        return kernel * (self._gain(norm) / norm)

    def _spectral_norm(self, kernel: Float[Array, "inputs outputs"]):
        state = self.variable(SPECTRAL, "left", leading_left_vector, kernel)
        weights = jax.lax.stop_gradient(kernel)
        right = _unit(state.value @ weights)
        left = _unit(weights @ right)
        if self.is_mutable_collection(SPECTRAL) and not self.is_initializing():
            state.value = left
        sigma = left @ kernel @ right
        return kernel * (self._gain(sigma) / sigma)

    def _gain(self, initial: Array) -> Array:
        # Not `self.param`, which draws a key: the matrix must not depend on the parametrisation.
        return self.variable("params", "gain", lambda: initial).value


def leading_left_vector(kernel: Float[Array, "inputs outputs"]) -> Float[Array, " inputs"]:
    """The left singular vector of the largest singular value, from an exact decomposition."""
    _, vectors = jnp.linalg.eigh(kernel @ kernel.T)
    return vectors[:, -1]


def _unit(x: Float[Array, " n"]) -> Float[Array, " n"]:
    return x / jnp.linalg.norm(x)
