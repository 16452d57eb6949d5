"""The decoder's configuration and the paper's twelve architectures."""

import dataclasses
import itertools
import math
from typing import Any, Literal, NamedTuple, get_args

from egattn._config import RUNTIME
from egattn._spelling import unknown
from egattn.attention.api import Implementation

Norm = Literal["layer_norm", "none"]
FeedForwardKind = Literal["mlp", "fused", "none"]
Activation = Literal["gelu", "relu", "leaky_relu", "identity"]
SlopeScope = Literal["model", "layer", "feature"]
Matrix = Literal["q", "k", "v", "o", "ffn"]
Reparam = Literal["none", "weight_norm", "spectral_norm"]
DType = Literal["float32", "bfloat16"]

_VOCAB_MULTIPLE = 128


@dataclasses.dataclass(frozen=True)
class DecoderConfig:
    """A GPT-2 style decoder with as few nonlinearities as asked for.

    Raises:
      ValueError: If a value is unknown or values do not fit together.
    """

    vocab_size: int = 50257
    """Number of tokens; the embedding is padded to a multiple of 128 rows, masked in the loss."""
    context_length: int = 128
    """Positions T the model can see."""
    num_layers: int = 12
    """Number of blocks L."""
    num_heads: int = 12
    """Query heads H."""
    num_kv_heads: int | None = None
    """Key and value heads; None means one per query head."""
    embed_dim: int = 768
    """Width d of the residual stream."""
    hidden_dim: int | None = None
    """Width of the feed-forward's hidden layer; None means 4 d."""
    pre_norm: Norm = "layer_norm"
    """Normalisation before attention and feed-forward."""
    final_norm: Norm = "layer_norm"
    """Normalisation before the vocabulary projection."""
    feed_forward: FeedForwardKind | tuple[FeedForwardKind, ...] = "mlp"
    """Feed-forward of every layer, or one entry per layer: two matrices, one d x d matrix, none."""
    activation: Activation = "gelu"
    """Activation between the two feed-forward matrices; leaky_relu learns its slope."""
    slope_scope: SlopeScope = "layer"
    """Which activations share one learnable leaky-ReLU slope."""
    initial_slope: float = 0.25
    """Initial leaky-ReLU slope; 0.25 as in PReLU."""
    ffn_scaling: bool = False
    """Whether the residual is beta x + FFN(x) / alpha, with alpha and beta learned per layer."""
    weight_reparam: Reparam = "none"
    """How `reparam_matrices` are parametrised; each starts equal to the plain matrix."""
    reparam_matrices: tuple[Matrix, ...] = ("ffn",)
    """The matrices that `weight_reparam` applies to."""
    temperature: float | None = None
    """Initial softmax temperature, learned per head and query position; None: fixed at 1."""
    threshold: float | None = None
    """Initial entropy threshold per head, a fraction of the maximum; None: no thresholds."""
    biases: tuple[Matrix, ...] = ("q", "k")
    """The matrices that have a bias."""
    tie_embeddings: bool = True
    """Whether the vocabulary projection is the token embedding."""
    init_std: float = 0.02
    """Standard deviation of every initial matrix."""
    scale_residual_init: bool = False
    """Whether the matrices that write to the residual start 1 / sqrt(2 L) smaller, as in GPT-2."""
    dtype: DType = "float32"
    """Precision of matrix products; softmax, entropy, norms, residual and loss stay float32."""
    remat: bool = dataclasses.field(default=False, metadata=RUNTIME)
    """Whether the backward pass recomputes each block's activations."""
    scan_layers: bool = dataclasses.field(default=False, metadata=RUNTIME)
    """Whether layers run in a loop: compiles faster, runs slower; same parameters and numbers."""
    implementation: Implementation | None = dataclasses.field(default=None, metadata=RUNTIME)
    """Attention implementation; None chooses."""

    def __post_init__(self):
        """Checks the values."""
        for field in dataclasses.fields(self):
            _check_names(field.name, getattr(self, field.name))
        for name in ("vocab_size", "context_length", "num_layers", "num_heads", "embed_dim"):
            _require(getattr(self, name) >= 1, f"{name} must be >= 1, got {getattr(self, name)}")
        _require(
            self.embed_dim % self.num_heads == 0,
            f"num_heads must divide embed_dim, got {self.num_heads} and {self.embed_dim}",
        )
        _require(
            self.kv_heads >= 1 and self.num_heads % self.kv_heads == 0,
            f"num_kv_heads must divide num_heads, got {self.num_kv_heads} and {self.num_heads}",
        )
        for name in ("temperature", "init_std"):
            value = getattr(self, name)
            _require(
                value is None or 0 < value < math.inf, f"{name} must be > 0 and finite, got {value}"
            )
        _require(
            self.threshold is None or 0 <= self.threshold <= 1,
            f"threshold must lie in [0, 1], got {self.threshold}",
        )
        _require(
            len(self.layer_kinds) == self.num_layers,
            f"feed_forward must name {self.num_layers} layers, got {len(self.layer_kinds)}",
        )
        _require(
            "fused" not in self.layer_kinds or self.activation == "identity",
            "a fused feed-forward is one matrix and has no activation: "
            f"activation must be 'identity', got {self.activation!r}",
        )

    @classmethod
    def preset(cls, name: str, **overrides: Any) -> "DecoderConfig":
        """Returns one of the paper's architectures, see `PRESETS`, with fields overridden.

        Raises:
          ValueError: If the preset or a field is unknown, naming the nearest one.
        """
        if name not in PRESETS:
            raise ValueError(unknown("preset", name, PRESETS))
        names = [field.name for field in dataclasses.fields(cls)]
        for key in overrides:
            if key not in names:
                raise ValueError(unknown("DecoderConfig field", key, names))
        return cls(**{**PRESETS[name].model, **overrides})

    @property
    def kv_heads(self) -> int:
        """Number of key and value heads."""
        return self.num_heads if self.num_kv_heads is None else self.num_kv_heads

    @property
    def head_dim(self) -> int:
        """Width of one head."""
        return self.embed_dim // self.num_heads

    @property
    def ffn_dim(self) -> int:
        """Width of the feed-forward's hidden layer."""
        return 4 * self.embed_dim if self.hidden_dim is None else self.hidden_dim

    @property
    def padded_vocab_size(self) -> int:
        """Rows of the embedding: `vocab_size` rounded up to a multiple of 128."""
        return -(-self.vocab_size // _VOCAB_MULTIPLE) * _VOCAB_MULTIPLE

    @property
    def layer_kinds(self) -> tuple[FeedForwardKind, ...]:
        """Feed-forward kind of each layer."""
        if isinstance(self.feed_forward, tuple):
            return self.feed_forward
        return (self.feed_forward,) * self.num_layers

    @property
    def layer_runs(self) -> list[tuple[FeedForwardKind, int]]:
        """Consecutive layers of one kind, as (kind, count): each run's parameters are stacked."""
        return [(kind, len(list(run))) for kind, run in itertools.groupby(self.layer_kinds)]


_LN_FREE = {"pre_norm": "none", "final_norm": "none"}
_SOFTMAX_ONLY = {**_LN_FREE, "activation": "identity"}
_SCALED_FUSED = {**_SOFTMAX_ONLY, "feed_forward": "fused", "ffn_scaling": True}


class Preset(NamedTuple):
    """One of the paper's networks."""

    model: dict[str, Any]
    """Fields of `DecoderConfig` that differ from SM+LN+G's."""
    penalty_weight: float = 0.0
    """Factor lambda of the entropy penalty that it is trained with."""


# The paper starts temperatures at 1e-2 (CodeParrot) or 1e-1 (Languini); 1e-2 needs the penalty
# from the first step on or it diverges.
_TEMPERATURE = {**_SCALED_FUSED, "temperature": 0.1}

PRESETS: dict[str, Preset] = {
    "sm_ln_g": Preset({}),
    "sm_ln_r": Preset({"activation": "relu"}),
    "sm_ln": Preset({"activation": "identity"}),
    "sm_g": Preset(_LN_FREE),
    "sm_r": Preset({**_LN_FREE, "activation": "relu"}),
    "sm": Preset(_SOFTMAX_ONLY),
    "sm_wnorm": Preset({**_SOFTMAX_ONLY, "weight_reparam": "weight_norm"}),
    "sm_snorm": Preset({**_SOFTMAX_ONLY, "weight_reparam": "spectral_norm"}),
    "sm_scffn": Preset({**_SOFTMAX_ONLY, "ffn_scaling": True}),
    "sm_scfuffn": Preset(_SCALED_FUSED),
    "sm_t_scfuffn": Preset(_TEMPERATURE),
    # The published sum's 1e-5 at 128 sequences of 128 positions, see `PenaltyConfig.weight`.
    "ereg_sm_t_scfuffn": Preset({**_TEMPERATURE, "threshold": 0.5}, penalty_weight=0.16),
}
"""The paper's networks in its order (Table 1 and after)."""

_CHOICES: dict[str, tuple[str, ...]] = {
    "pre_norm": get_args(Norm),
    "final_norm": get_args(Norm),
    "feed_forward": get_args(FeedForwardKind),
    "activation": get_args(Activation),
    "slope_scope": get_args(SlopeScope),
    "weight_reparam": get_args(Reparam),
    "reparam_matrices": get_args(Matrix),
    "biases": get_args(Matrix),
    "dtype": get_args(DType),
}


def _check_names(field: str, value: Any) -> None:
    for name in value if isinstance(value, tuple) else (value,):
        if field in _CHOICES and name not in _CHOICES[field]:
            raise ValueError(unknown(field, name, _CHOICES[field]))


def _require(condition: bool, message: str) -> None:
    if not condition:
        raise ValueError(message)
