"""Nonlinear operations, FLOPs and parameters of one forward pass over a full context."""

import dataclasses

import jax
import jax.numpy as jnp

from egattn.model import Decoder, DecoderConfig


@dataclasses.dataclass(frozen=True)
class Nonlinearity:
    """Operations of one kind on matrices of one shape."""

    kind: str
    """softmax, layer_norm, gelu, relu or leaky_relu."""
    count: int
    """How many there are."""
    shape: tuple[int, int]
    """Rows and columns of one."""


@dataclasses.dataclass(frozen=True)
class Flops:
    """Floating-point operations of one sequence, two per multiplication and addition."""

    feed_forward: int
    """All feed-forward matrices."""
    attention: int
    """Projections, scores, weighted values and softmax, as the paper counts them."""
    embedding: int
    """Token embedding as a product with one-hot rows, which is what runs on encrypted tokens."""
    head: int
    """Vocabulary projection."""


@dataclasses.dataclass(frozen=True)
class Cost:
    """What one forward pass over a full context consists of."""

    nonlinearities: tuple[Nonlinearity, ...]
    """Those of the blocks, as the paper's tables list them."""
    final: tuple[Nonlinearity, ...]
    """What follows the blocks; the paper's tables leave it out."""
    flops: Flops
    """Matrix operations."""
    parameters: dict[str, int]
    """Entries by part of the model; weights that are folded into others count as trained."""


def cost(config: DecoderConfig) -> Cost:
    """Counts what one sequence of `context_length` tokens costs.

    Reference:
      Entropy-Guided Attention for Private LLMs, Tables 3, 4, 7, 8 (columns #Nonlinear Ops, FLOPs).
    """
    final = [_layer_norms(config, 1)] if config.final_norm == "layer_norm" else []
    return Cost(tuple(_nonlinearities(config)), tuple(final), _flops(config), _parameters(config))


def _nonlinearities(c: DecoderConfig) -> list[Nonlinearity]:
    length, with_ffn = c.context_length, sum(kind != "none" for kind in c.layer_kinds)
    found = [Nonlinearity("softmax", c.num_layers * c.num_heads, (length, length))]
    if c.pre_norm == "layer_norm":
        found.append(_layer_norms(c, c.num_layers + with_ffn))
    activations = c.layer_kinds.count("mlp") if c.activation != "identity" else 0
    if activations:
        found.append(Nonlinearity(c.activation, activations, (length, c.ffn_dim)))
    return found


def _layer_norms(c: DecoderConfig, count: int) -> Nonlinearity:
    return Nonlinearity("layer_norm", count, (c.context_length, c.embed_dim))


def _flops(c: DecoderConfig) -> Flops:
    length, width = c.context_length, c.embed_dim
    feed_forward = {
        "mlp": 4 * length * width * c.ffn_dim,
        "fused": 2 * length * width**2,
        "none": 0,
    }
    # 8 T d^2 + 3 T^2 d where every query head has its own key and value head. Scores and weighted
    # values are counted where a query sees a key, T^2 d each; the third T^2 d is the paper's.
    projections = 4 * length * width * (width + c.kv_heads * c.head_dim)
    vocabulary = 2 * length * width * c.vocab_size
    return Flops(
        feed_forward=sum(feed_forward[kind] for kind in c.layer_kinds),
        attention=c.num_layers * (projections + 3 * length**2 * width),
        embedding=vocabulary,
        head=vocabulary,
    )


def _parameters(c: DecoderConfig) -> dict[str, int]:
    tokens = jax.ShapeDtypeStruct((1, c.context_length), jnp.int32)
    shapes = jax.eval_shape(Decoder(c).init, jax.random.key(0), tokens)["params"]
    # Rows beyond the vocabulary only round its size up.
    unused = (c.padded_vocab_size - c.vocab_size) * c.embed_dim
    counts: dict[str, int] = {}
    for path, leaf in jax.tree.leaves_with_path(shapes):
        part = str(path[0].key)
        part = "blocks" if part.startswith("blocks") else part
        counts[part] = counts.get(part, 0) + leaf.size
    for part in ("token_embedding", "head"):
        if part in counts:
            counts[part] -= unused
    return counts
