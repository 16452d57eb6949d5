"""The decoder: embeddings, L blocks, vocabulary projection; logits and entropy out."""

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import flax.linen as nn
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from egattn.attention import entropy_attention
from egattn.attention.cached import Place
from egattn.model.attention import EntropyAttention
from egattn.model.config import DecoderConfig, FeedForwardKind
from egattn.model.feed_forward import FeedForward
from egattn.model.linear import SPECTRAL, multiply_transposed
from egattn.model.segments import restarted_positions

Constrain = Callable[[Array], Array]


def unconstrained(x: Array) -> Array:
    """Returns its argument."""
    return x


class DecoderOutput(NamedTuple):
    """What `Decoder` returns."""

    logits: Float[Array, "batch length vocab"]
    """Next-token logits, float32."""
    entropy: Float[Array, "layers batch heads length"]
    """Attention entropy of every row, nats, float32."""


class DecoderFeatures(NamedTuple):
    """What `Decoder.features` returns: the parts of a loss that never holds all logits."""

    hidden: Float[Array, "batch length width"]
    """Input of the vocabulary projection, in the config's dtype."""
    head: Float[Array, "padded_vocab width"]
    """Matrix of the vocabulary projection; rows from `vocab_size` on are padding."""
    entropy: Float[Array, "layers batch heads length"]
    """Attention entropy of every row, nats, float32."""


class Block(nn.Module):
    """`x += attention(norm(x))`, then `x = beta x + feed_forward(norm(x)) / alpha`.

    alpha and beta are learned scalars with `ffn_scaling`, else 1.

    Reference:
      Jha & Reagen, arXiv 2501.03489, Table 1 and Section 3 (SM+ScFFN).
    """

    config: DecoderConfig
    """The decoder's configuration."""
    kind: FeedForwardKind
    """This layer's feed-forward."""
    constrain: Constrain = unconstrained
    """Applied to the residual stream, see `Decoder.constrain`."""
    attend: Callable = entropy_attention
    """The operator, see `EntropyAttention.attend`."""

    @nn.compact
    def __call__(
        self,
        x: Float[Array, "batch length width"],
        segment_ids: Int[Array, "batch length"] | None = None,
        slope: Float[Array, ""] | None = None,
        positions: Int[Array, "batch length"] | None = None,
        place: Place | None = None,
    ) -> tuple[Float[Array, "batch length width"], Float[Array, "batch heads length"]]:
        """Returns the new residual stream, float32, and the entropy."""
        c = self.config
        residual_std = c.init_std
        if c.scale_residual_init:
            residual_std /= math.sqrt(2 * c.num_layers)
        attended, entropy = EntropyAttention(
            num_heads=c.num_heads,
            num_kv_heads=c.num_kv_heads,
            context_length=c.context_length,
            temperature=c.temperature,
            biases=c.biases,
            weight_reparam=c.weight_reparam,
            reparam_matrices=c.reparam_matrices,
            init_std=c.init_std,
            output_init_std=residual_std,
            dtype=c.dtype,
            implementation=c.implementation,
            attend=self.attend,
            name="attention",
        )(norm(c.pre_norm, "attention_norm", x), segment_ids, positions, place)
        x = self.constrain(x + attended)
        if self.kind == "none":
            return x, entropy
        y = FeedForward(
            kind=self.kind,
            hidden_dim=c.hidden_dim,
            activation=c.activation,
            slope_scope=c.slope_scope,
            initial_slope=c.initial_slope,
            use_bias="ffn" in c.biases,
            reparam=c.weight_reparam if "ffn" in c.reparam_matrices else "none",
            init_std=c.init_std,
            output_init_std=residual_std,
            dtype=c.dtype,
            name="feed_forward",
        )(norm(c.pre_norm, "ffn_norm", x), slope)
        if not c.ffn_scaling:
            return self.constrain(x + y), entropy
        alpha = self.param("alpha", nn.initializers.ones, ())
        beta = self.param("beta", nn.initializers.ones, ())
        return self.constrain(beta * x + y / alpha), entropy


class Decoder(nn.Module):
    """A decoder-only language model whose attention entropy is an output.

    Parameters of consecutive layers of one kind are stacked on a leading axis, whether the layers
    run in a loop or not, so both share checkpoints and initial values.
    """

    config: DecoderConfig
    """Architecture, see `DecoderConfig.preset`."""
    constrain: Constrain = unconstrained
    """Applied to the residual stream [B, T, d] wherever it is written: a place for sharding
    constraints, see `egattn.sharding.constrain_activations`."""
    attend: Callable = entropy_attention
    """The operator, see `EntropyAttention.attend`."""
    stacked: bool = True
    """False gives each layer its own parameters, "blocks_0" and so on, see
    `egattn.model.layers.per_layer`: a loop over tokens need not take them out of the stack."""

    def setup(self):
        """Creates the parameters."""
        c = self.config
        normal = nn.initializers.normal(c.init_std)
        self.token_embedding = nn.Embed(c.padded_vocab_size, c.embed_dim, embedding_init=normal)
        self.position_embedding = nn.Embed(c.context_length, c.embed_dim, embedding_init=normal)
        self.blocks = [
            block
            for kind, count in c.layer_runs
            for block in ([self._run(kind, count)] if self.stacked else self._each(kind, count))
        ]
        if not c.tie_embeddings:
            self.head = self.param("head", normal, (c.padded_vocab_size, c.embed_dim))
        if c.activation == "leaky_relu" and c.slope_scope == "model":
            self.slope = self.param("slope", nn.initializers.constant(c.initial_slope), ())
        if c.threshold is not None:
            # Read by the penalty, not by the network: kept here so that it is trained and saved.
            constant = nn.initializers.constant(c.threshold)
            self.threshold = self.param("threshold", constant, (c.num_layers, c.num_heads))
        self.final_norm = nn.LayerNorm(epsilon=1e-5) if c.final_norm == "layer_norm" else None

    def __call__(
        self,
        tokens: Int[Array, "batch length"],
        segment_ids: Int[Array, "batch length"] | None = None,
    ) -> DecoderOutput:
        """Returns logits [B, T, V] and entropy [L, B, H, T].

        Args:
          tokens: Token ids [B, T], T at most the context length.
          segment_ids: Document of each position for packed windows, see `entropy_attention`;
            embeddings and temperatures of positions start again with each document.

        Raises:
          ValueError: If T exceeds the context length.
        """
        hidden, head, entropy = self.features(tokens, segment_ids)
        logits = jnp.einsum(
            "btd,vd->btv",
            hidden,
            head[: self.config.vocab_size].astype(hidden.dtype),
            preferred_element_type=jnp.float32,
        )
        return DecoderOutput(logits, entropy)

    def decode(
        self,
        tokens: Int[Array, "batch length"],
        positions: Int[Array, "batch length"],
        last: Int[Array, " batch"] | None = None,
        place: Place | None = None,
    ) -> DecoderOutput:
        """As `__call__`, for generation: keys and values are kept in the collection "cache".

        The layers must not be stacked.

        Args:
          tokens: The prompts [B, T], or the next token of each path of each prompt, [B K, 1].
          positions: Their indices in the sequences.
          last: Which of the T inputs of each sequence to return logits [B, 1, V] for; None: all.
          place: None for prompts; else where the tokens belong in the cache.
        """
        hidden, head, entropy = self.features(tokens, None, positions, place)
        if last is not None:
            hidden = jnp.take_along_axis(hidden, last[:, None, None], axis=1)
        logits = multiply_transposed(hidden, head.astype(hidden.dtype), "float32")
        # Cut afterwards: the logits of a few tokens are smaller than the matrix.
        return DecoderOutput(logits[..., : self.config.vocab_size], entropy)

    def features(
        self,
        tokens: Int[Array, "batch length"],
        segment_ids: Int[Array, "batch length"] | None = None,
        positions: Int[Array, "batch length"] | None = None,
        place: Place | None = None,
    ) -> DecoderFeatures:
        """As `__call__`, but stops before the vocabulary projection; for the rest see `decode`."""
        c = self.config
        length = tokens.shape[1]
        if length > c.context_length:
            raise ValueError(f"expected at most {c.context_length} positions, got {length}")
        # Positions beyond the trained ones have the last one's embedding.
        if positions is not None:
            index = jnp.minimum(positions, c.context_length - 1)
        elif segment_ids is not None:
            index = restarted_positions(segment_ids)
        else:
            index = jnp.arange(length)
        x = self.token_embedding(tokens) + self.position_embedding(index)
        x = self.constrain(x)
        slope = self.slope if c.activation == "leaky_relu" and c.slope_scope == "model" else None
        entropies = []
        for run in self.blocks:
            x, entropy = run(x, segment_ids, slope, positions, place)
            entropies.append(entropy if self.stacked else entropy[None])
        if self.final_norm is not None:
            x = self.constrain(self.final_norm(x))
        head = self.token_embedding.embedding if c.tie_embeddings else self.head
        return DecoderFeatures(x.astype(c.dtype), head, jnp.concatenate(entropies))

    def _run(self, kind: FeedForwardKind, count: int) -> nn.Module:
        """`count` blocks of one kind, parameters stacked on axis 0."""
        c = self.config
        broadcast: Any = (nn.broadcast,) * 4
        block = nn.remat(Block, prevent_cse=not c.scan_layers) if c.remat else Block
        return nn.scan(
            block,
            variable_axes={"params": 0, SPECTRAL: 0},
            split_rngs={"params": True},
            in_axes=broadcast,
            length=count,
            unroll=1 if c.scan_layers else count,
        )(c, kind, self.constrain, self.attend)

    def _each(self, kind: FeedForwardKind, count: int) -> list[nn.Module]:
        """`count` blocks of one kind, each with parameters of its own."""
        return [Block(self.config, kind, self.constrain, self.attend) for _ in range(count)]


def norm(kind: str, name: str, x: Float[Array, "*batch width"]) -> Float[Array, "*batch width"]:
    """Layer norm in float32, or nothing."""
    return nn.LayerNorm(epsilon=1e-5, name=name)(x) if kind == "layer_norm" else x
