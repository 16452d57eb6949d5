"""A linear layer whose matrix can be weight- or spectrally normalised."""

import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from egattn.model.config import DType, Reparam

SPECTRAL = "spectral"
"""Collection of the power iteration's vectors; not trained, updated when mutable."""

TRANSPOSED = "transposed"
"""What a plain matrix is called that is kept as [outputs, inputs], for generation."""

# Rows of inputs up to which a product costs what reading the matrix costs.
_FEW = 32


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

    def __call__(self, x: Float[Array, "*batch inputs"]) -> Float[Array, "*batch outputs"]:
        """Returns [..., features] in `dtype`."""
        kernel, bias = self.weights(x.shape[-1])
        transposed = self.has_variable("params", TRANSPOSED)
        multiply = multiply_transposed if transposed else jnp.dot
        y = multiply(x.astype(self.dtype), kernel.T if transposed else kernel)
        return y if bias is None else y + bias

    @nn.compact
    def weights(
        self, inputs: int
    ) -> tuple[Float[Array, "inputs outputs"], Float[Array, " outputs"] | None]:
        """Returns the matrix as it multiplies, and the bias if there is one, in `dtype`."""
        if self.has_variable("params", TRANSPOSED):
            kernel = self.get_variable("params", TRANSPOSED).T
        else:
            normal = nn.initializers.normal(self.init_std)
            kernel = self.param("kernel", normal, (inputs, self.features))
        if self.reparam == "weight_norm":
            kernel = self._weight_norm(kernel)
        elif self.reparam == "spectral_norm":
            kernel = self._spectral_norm(kernel)
        if not self.use_bias:
            return kernel.astype(self.dtype), None
        bias = self.param("bias", nn.initializers.zeros, (self.features,))
        bias = bias if self.train_bias else jax.lax.stop_gradient(bias)
        return kernel.astype(self.dtype), bias.astype(self.dtype)

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


def multiply_transposed(
    x: Float[Array, "*batch inputs"],
    matrix: Float[Array, "outputs inputs"],
    dtype: DType | None = None,
) -> Float[Array, "*batch outputs"]:
    """`x @ matrix.T`, on CPUs in the order that suits few rows if x has few.

    Args:
      x: Inputs.
      matrix: Matrix, in the dtype of x.
      dtype: Of the result; default: that of x.
    """
    plain = functools.partial(jnp.einsum, "...i,oi->...o", preferred_element_type=dtype)
    if x.size // x.shape[-1] > _FEW:
        return plain(x, matrix)

    def matrix_first(x: Array, matrix: Array) -> Array:
        y = jnp.einsum("oi,...i->o...", matrix, x, preferred_element_type=dtype)
        # Or XLA turns the product around, and its products on CPUs copy the second operand.
        return jnp.moveaxis(jax.lax.optimization_barrier(y), 0, -1)

    return jax.lax.platform_dependent(x, matrix, cpu=matrix_first, default=plain)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def parallel_products(groups: int, x: Array, *kernels: Array) -> tuple[Array, ...]:
    """`x @ kernel` for several kernels, whose gradients take two products together.

    Args:
      groups: Divides the kernels' widths. Gradients are put together group by group, so that a mesh
        may split the groups.
      x: Inputs [..., d].
      *kernels: Matrices [d, n].
    """
    del groups
    return tuple(jnp.dot(x, kernel) for kernel in kernels)


def _parallel_products_fwd(groups, x, *kernels):
    return parallel_products(groups, x, *kernels), (x, kernels)


def _parallel_products_bwd(groups, operands, cotangents):
    x, kernels = operands
    together, kernel = (
        jnp.concatenate([y.reshape(*y.shape[:-1], groups, -1) for y in ys], -1)
        for ys in (cotangents, kernels)
    )
    dx = jnp.einsum("...gn,dgn->...d", together, kernel)
    dkernel = jnp.einsum("...d,...gn->dgn", x, together)
    ends = np.cumsum([k.shape[1] // groups for k in kernels])[:-1]
    return dx, *(part.reshape(x.shape[-1], -1) for part in jnp.split(dkernel, ends, -1))


parallel_products.defvjp(_parallel_products_fwd, _parallel_products_bwd)


def leading_left_vector(kernel: Float[Array, "inputs outputs"]) -> Float[Array, " inputs"]:
    """The left singular vector of the largest singular value, from an exact decomposition."""
    _, vectors = jnp.linalg.eigh(kernel @ kernel.T)
    return vectors[:, -1]


def _unit(x: Float[Array, " n"]) -> Float[Array, " n"]:
    return x / jnp.linalg.norm(x)
