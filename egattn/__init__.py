"""Entropy-guided attention for private language models, in JAX.

Attention entropy is a first-class, differentiable output of attention here. Three things to use:

- `entropy_attention`: the operator, a pure function on arrays.
- `entropy_penalty`, `max_entropy`, `entropy_summary`: the loss term and the statistics.
- `Decoder` and its parts: Flax Linen modules, configured by `DecoderConfig`.

Everything else (`egattn.data`, `egattn.train`, `egattn.report`) is imported on demand.
"""

import importlib
from typing import TYPE_CHECKING, Any

from egattn.attention import entropy_attention as entropy_attention
from egattn.entropy import EntropySummary as EntropySummary
from egattn.entropy import entropy_penalty as entropy_penalty
from egattn.entropy import entropy_summary as entropy_summary
from egattn.entropy import max_entropy as max_entropy

if TYPE_CHECKING:
    from egattn.model import Decoder as Decoder
    from egattn.model import DecoderConfig as DecoderConfig
    from egattn.model import DecoderOutput as DecoderOutput
    from egattn.model import EntropyAttention as EntropyAttention
    from egattn.model import FeedForward as FeedForward

__version__ = "0.1.0"

_MODULES = ("Decoder", "DecoderConfig", "DecoderOutput", "EntropyAttention", "FeedForward")


def __getattr__(name: str) -> Any:
    """Imports the modules when first used: the functions alone need JAX, not Flax."""
    if name not in _MODULES:
        raise AttributeError(f"module 'egattn' has no attribute {name!r}")
    return getattr(importlib.import_module("egattn.model"), name)
