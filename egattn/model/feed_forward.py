"""The feed-forward layer: two matrices around an activation, or both fused into one."""

import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from egattn.model.config import Activation, DType, FeedForwardKind, Reparam, SlopeScope
from egattn.model.linear import Linear


class FeedForward(nn.Module):
    """`W2 f(W1 x)`, or one d x d matrix ("fused": what the former is without an activation).

    Reference:
      Jha & Reagen, arXiv 2501.03489, Section 3; learnable slopes: arXiv 2410.09637.
    """

    kind: FeedForwardKind = "mlp"
    """"mlp" or "fused"."""
    hidden_dim: int | None = None
    """Hidden width of "mlp"; None means 4 times the input's."""
    activation: Activation = "gelu"
    """Activation of "mlp"; "gelu" is the tanh form, as in GPT-2."""
    slope_scope: SlopeScope = "layer"
    """Leaky-ReLU slope: one per layer or feature, or "model" for one that the caller passes."""
    initial_slope: float = 0.25
    """Initial slope."""
    use_bias: bool = False
    """Whether the matrices have biases."""
    reparam: Reparam = "none"
    """Parametrisation of the matrices."""
    init_std: float = 0.02
    """Standard deviation of the initial matrices."""
    output_init_std: float | None = None
    """The same for the last matrix; None means `init_std`."""
    dtype: DType = "float32"
    """Precision of the matrix products."""

    @nn.compact
    def __call__(
        self, x: Float[Array, "*batch width"], slope: Float[Array, ""] | None = None
    ) -> Float[Array, "*batch width"]:
        """Returns [..., d] in `dtype`.

        Args:
          x: Inputs [..., d].
          slope: The model-wide leaky-ReLU slope, needed with slope_scope "model".
        """
        output_std = self.init_std if self.output_init_std is None else self.output_init_std
        width = x.shape[-1]
        if self.kind == "fused":
            return self._linear("fused", width, output_std)(x)
        hidden = 4 * width if self.hidden_dim is None else self.hidden_dim
        h = self._activate(self._linear("up", hidden, self.init_std)(x), slope)
        return self._linear("down", width, output_std)(h)

    def _linear(self, name: str, features: int, std: float) -> Linear:
        return Linear(
            features,
            use_bias=self.use_bias,
            reparam=self.reparam,
            init_std=std,
            dtype=self.dtype,
            name=name,
        )

    def _activate(self, h: Array, slope: Array | None) -> Array:
        if self.activation == "gelu":
            # Recomputed in the backward pass: to read h again costs less than to store its parts.
            return jax.checkpoint(functools.partial(nn.gelu, approximate=True))(h)
        if self.activation == "relu":
            return nn.relu(h)
        if self.activation == "identity":
            return h
        if self.slope_scope != "model":
            shape = h.shape[-1:] if self.slope_scope == "feature" else ()
            slope = self.param("slope", nn.initializers.constant(self.initial_slope), shape)
        if slope is None:
            raise ValueError("slope_scope 'model' needs the model's slope as an argument, got None")
        return jnp.where(h >= 0, h, slope.astype(h.dtype) * h)
