"""The attention layer: projections, learnable temperature, output and entropy."""

import math
from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from egattn.attention import entropy_attention
from egattn.attention.api import Implementation
from egattn.attention.cached import Cached, Place, attend_cached, prompt_layout, write_next
from egattn.model.config import DType, Matrix, Reparam
from egattn.model.linear import Linear, parallel_products
from egattn.model.segments import restarted_positions

CACHE = "cache"
"""Collection of the keys and values kept for generation, see `egattn.attention.cached`."""


class EntropyAttention(nn.Module):
    """Multi-head self-attention that returns its entropy, with a temperature per head and query.

    The parameter is the log of the temperature, so a temperature is positive whatever the
    optimiser does. It folds into the query row's scale and costs no extra pass.

    Reference:
      Jha & Reagen, arXiv 2501.03489, Appendix A.
    """

    num_heads: int
    """Query heads H; must divide the input's width d."""
    num_kv_heads: int | None = None
    """Key and value heads; None means H."""
    context_length: int | None = None
    """Most positions accepted; needed with a temperature, which has one entry per position."""
    temperature: float | None = None
    """Initial temperature; None means no learnable temperature."""
    causal: bool = True
    """Whether positions see only the past."""
    biases: tuple[Matrix, ...] = ("q", "k")
    """Which of the projections have a bias."""
    weight_reparam: Reparam = "none"
    """Parametrisation of `reparam_matrices`."""
    reparam_matrices: tuple[Matrix, ...] = ()
    """Which of the projections are reparametrised."""
    init_std: float = 0.02
    """Standard deviation of the initial matrices."""
    output_init_std: float | None = None
    """The same for the output projection; None means `init_std`."""
    dtype: DType = "float32"
    """Precision of the matrix products."""
    implementation: Implementation | None = None
    """Attention implementation; None chooses."""
    attend: Callable = entropy_attention
    """The operator, or one with its signature: a place for a mesh, see
    `egattn.sharding.attend_per_shard`."""

    @nn.compact
    def __call__(
        self,
        x: Float[Array, "batch length width"],
        segment_ids: Int[Array, "batch length"] | None = None,
        positions: Int[Array, "batch length"] | None = None,
        place: Place | None = None,
    ) -> tuple[Float[Array, "batch length width"], Float[Array, "batch heads length"]]:
        """Attends within x, or with a place from x to all that came before.

        Args:
          x: Inputs [B, T, d].
          segment_ids: Document of each position, see `entropy_attention`; the temperatures of
            positions start again with each.
          positions: For generation: the index of each input in its sequence.
          place: None for prompts, whose keys and values go into the mutable collection "cache";
            with the next token of each path of each prompt [B K, 1, d] and its position, where it
            belongs there.

        Returns:
          The output [B, T, d] in `dtype` and the entropy [B, H, T] in nats, float32.

        Raises:
          ValueError: If H does not divide d or T exceeds the context length.
        """
        batch, length, width = x.shape
        if width % self.num_heads:
            raise ValueError(f"num_heads must divide the width, got {self.num_heads} and {width}")
        if self.context_length is not None and length > self.context_length:
            raise ValueError(f"expected at most {self.context_length} positions, got {length}")
        head_dim = width // self.num_heads
        kv_heads = self.num_heads if self.num_kv_heads is None else self.num_kv_heads
        heads: dict[Matrix, int] = {"q": self.num_heads, "k": kv_heads, "v": kv_heads}
        linears = [self._linear(name, count * head_dim) for name, count in heads.items()]
        if positions is None:
            products = self._products(kv_heads, x, linears)
        else:
            products = [linear(x) for linear in linears]
        query, key, value = (y.reshape(batch, length, -1, head_dim) for y in products)
        restarted = None if segment_ids is None else restarted_positions(segment_ids)
        temperature = self._temperature(length, restarted if positions is None else positions)
        if place is not None:
            keys, values = (
                self._write_next(*new, place) for new in (("key", key), ("value", value))
            )
            out, entropy = attend_cached(query, keys, values, place, temperature)
        else:
            if positions is not None:
                self._write_prompt("key", key)
                self._write_prompt("value", value)
            out, entropy = self.attend(
                query,
                key,
                value,
                temperature,
                causal=self.causal,
                segment_ids=segment_ids,
                implementation=self.implementation,
            )
        return self._linear("o", width)(out.reshape(batch, length, -1)), entropy

    def _products(self, groups: int, x: Array, linears: list[Linear]) -> list[Array]:
        """Each linear layer of x, with joint gradients."""
        kernels, biases = zip(*[linear.weights(x.shape[-1]) for linear in linears], strict=True)
        products: Any = parallel_products(groups, x.astype(self.dtype), *kernels)
        return [y if bias is None else y + bias for y, bias in zip(products, biases, strict=True)]

    def _linear(self, matrix: Matrix, features: int) -> Linear:
        std = self.init_std
        if matrix == "o" and self.output_init_std is not None:
            std = self.output_init_std
        return Linear(
            features,
            use_bias=matrix in self.biases,
            # A key bias adds one number to all scores of a row, which softmax ignores: its gradient
            # is 0, but rounding would leave a little, and Adam makes full steps of that.
            train_bias=matrix != "k",
            reparam=self.weight_reparam if matrix in self.reparam_matrices else "none",
            init_std=std,
            dtype=self.dtype,
            name=matrix,
        )

    def _write_prompt(self, name: str, prompt: Float[Array, "batch length heads head_dim"]) -> None:
        """Keeps a prompt's keys or values."""
        turned = prompt_layout(prompt)
        self.variable(CACHE, f"prompt_{name}", lambda: turned).value = turned

    def _write_next(
        self, name: str, x: Float[Array, "paths 1 heads head_dim"], place: Place
    ) -> Cached:
        """Keeps each path's next key or value; returns all of them."""
        new = write_next(self.get_variable(CACHE, name), x, place)
        self.put_variable(CACHE, name, new)
        return Cached(self.get_variable(CACHE, f"prompt_{name}"), new)

    def _temperature(self, length: int, positions) -> Float[Array, "*batch heads length"] | None:
        if self.temperature is None:
            return None
        if self.temperature <= 0:
            raise ValueError(f"temperature must be > 0, got {self.temperature}")
        if self.context_length is None:
            raise ValueError("a learnable temperature needs context_length, got None")
        log_temperature = self.param(
            "log_temperature",
            nn.initializers.constant(math.log(self.temperature)),
            (self.num_heads, self.context_length),
        )
        if positions is None:
            return jnp.exp(log_temperature[:, :length])
        # Positions beyond the trained ones have the last one's.
        return jnp.exp(jnp.swapaxes(log_temperature[:, positions], 0, 1))
