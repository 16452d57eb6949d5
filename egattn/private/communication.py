"""What two parties send each other for one forward pass: estimates from measured operations.

The measurements, `communication.json`, and where they come from are made by
`experiments/private_inference/measure.py`: CHEETAH, at GPT-2 small's width.
"""

import dataclasses
import functools
import importlib.resources
import json
import math
from typing import Any

import numpy as np

from egattn.model import DecoderConfig
from egattn.private.program import PIECE, Gelu


@dataclasses.dataclass(frozen=True)
class Traffic:
    """Estimated bytes of operations of one kind and size, both directions together."""

    part: str
    """Part of the program, e.g. softmax."""
    count: int
    """How many there are."""
    sizes: tuple[int, ...]
    """Entries of an elementwise operation or a norm; rows, inputs and outputs of a matrix."""
    bytes: float
    """Of one of them."""


@dataclasses.dataclass(frozen=True)
class Communication:
    """Estimated bytes of one forward pass over a full context."""

    blocks: tuple[Traffic, ...]
    """All layers and the norm behind them."""
    embedding: Traffic
    """Product of the client's one-hot tokens and the server's embedding."""
    head: Traffic
    """Vocabulary projection of all positions."""
    setup: float
    """Keys, once per connection."""

    @property
    def bytes(self) -> float:
        """Of everything but the setup."""
        return sum(t.count * t.bytes for t in (*self.blocks, self.embedding, self.head))


@functools.cache
def calibration() -> dict[str, Any]:
    """Returns the measurements: `provenance` and `rows`."""
    files = importlib.resources.files("egattn.private")
    return json.loads((files / "communication.json").read_text(encoding="utf-8"))


def communication(config: DecoderConfig, gelu: Gelu = "tanh") -> Communication:
    """Estimates what one private forward pass over `context_length` tokens sends.

    Elementwise operations take so many bytes per entry, products so many per entry of what goes in
    and comes out; small sizes take more than that, for ciphertexts hold thousands of entries.
    Products of two shared matrices are known from two shapes, with 128 positions and heads of 64.
    """
    c, length = config, config.context_length
    entries, layers = length * c.embed_dim, c.num_layers
    qkv = (length, c.embed_dim, (c.num_heads + 2 * c.kv_heads) * c.head_dim)
    square = (length, c.embed_dim, c.embed_dim)
    found = [
        _traffic("qkv", "linear", layers, *qkv),
        _traffic("scores", "shared_product", layers, c.num_heads, length, c.head_dim, length),
        _traffic("softmax", "softmax", layers, c.num_heads * length**2),
        _traffic("values", "shared_product", layers, c.num_heads, length, length, c.head_dim),
        _traffic("out", "linear", layers, *square),
    ]
    if c.temperature is not None:
        found.append(_traffic("temperature", "temperature", layers, entries))
    norms = layers + sum(kind != "none" for kind in c.layer_kinds) if c.pre_norm != "none" else 0
    norms += c.final_norm != "none"
    if norms:
        found.append(_traffic("layer_norm", "layer_norm", norms, entries))
    mlp = c.layer_kinds.count("mlp")
    # Two matrices without an activation are one, and half of a leaky ReLU is one.
    linear = c.layer_kinds.count("fused")
    linear += mlp if c.activation in ("identity", "leaky_relu") else 0
    if linear:
        found.append(_traffic("linear", "linear", linear, *square))
    if mlp and c.activation != "identity":
        activation = f"gelu_{gelu}" if c.activation == "gelu" else "relu"
        found += [
            _traffic("up", "linear", mlp, length, c.embed_dim, c.ffn_dim),
            _traffic(activation, activation, mlp, length * c.ffn_dim),
            _traffic("down", "linear", mlp, length, c.ffn_dim, c.embed_dim),
        ]
    return Communication(
        tuple(found),
        _traffic("embedding", "linear", 1, length, c.vocab_size, c.embed_dim),
        _traffic("head", "linear", 1, length, c.embed_dim, c.vocab_size),
        _rates("setup")[0],
    )


def _traffic(part: str, operation: str, count: int, *sizes: int) -> Traffic:
    bytes = float(_features(operation, sizes) @ _rates(operation))
    return Traffic(part, count, sizes, bytes)


def _features(operation: str, sizes: tuple[int, ...]) -> np.ndarray:
    """What bytes are proportional to: entries in and out of a product, else all entries."""
    if operation not in ("linear", "shared_product"):
        return np.array(sizes or (1,), float)
    *rows, inputs, outputs = sizes
    ends = np.array((inputs, outputs), float)
    if operation == "linear":
        # In pieces, the inputs go in once per piece of the outputs, and the other way round.
        ends *= math.ceil(outputs / PIECE), math.ceil(inputs / PIECE)
    return np.prod(rows, dtype=float) * ends


@functools.cache
def _rates(operation: str) -> np.ndarray:
    """Bytes per unit of each feature, least squares over the measurements."""
    rows = [row for row in calibration()["rows"] if row["operation"] == operation]
    features = np.stack([_features(operation, tuple(row["sizes"])) for row in rows])
    # Relative errors count, or the vocabulary would decide everything.
    measured = np.array([row["bytes"] for row in rows], float)
    return np.linalg.lstsq(features / measured[:, None], np.ones(len(rows)), rcond=None)[0]
