"""Entropy-guided attention for private language models, in JAX.

Attention entropy is a first-class, differentiable output of attention here. Three things to use:

- `entropy_attention`: the operator, a pure function on arrays.
- `entropy_penalty`, `max_entropy`, `entropy_summary`: the loss term and the statistics.
- `Decoder` and its parts: Flax Linen modules, configured by `DecoderConfig`.

`flow` is about other systems: score and entropy production of stochastic processes.
Everything else (`egattn.data`, `egattn.train`, `egattn.report`) is imported on demand.
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from egattn import attention as attention
    from egattn import entropy as entropy
    from egattn import flow as flow
    from egattn.attention import entropy_attention as entropy_attention
    from egattn.entropy import EntropySummary as EntropySummary
    from egattn.entropy import entropy_penalty as entropy_penalty
    from egattn.entropy import entropy_summary as entropy_summary
    from egattn.entropy import max_entropy as max_entropy
    from egattn.model import Decoder as Decoder
    from egattn.model import DecoderConfig as DecoderConfig
    from egattn.model import DecoderOutput as DecoderOutput
    from egattn.model import EntropyAttention as EntropyAttention
    from egattn.model import FeedForward as FeedForward

__version__ = "0.1.0"

_HOMES = {
    "entropy_attention": "attention",
    "EntropySummary": "entropy",
    "entropy_penalty": "entropy",
    "entropy_summary": "entropy",
    "max_entropy": "entropy",
    "Decoder": "model",
    "DecoderConfig": "model",
    "DecoderOutput": "model",
    "EntropyAttention": "model",
    "FeedForward": "model",
}
_MODULES = ("attention", "entropy", "flow")
__all__ = [*_HOMES]  # pyright: ignore[reportUnsupportedDunderAll] - the names above, one list


def __getattr__(name: str) -> Any:
    """Imports a name when it is first used: the functions need JAX but not Flax, commands neither.

    A command listens to signals before it imports either.
    """
    if name in _MODULES:
        return importlib.import_module(f"egattn.{name}")
    if name not in _HOMES:
        raise AttributeError(f"module 'egattn' has no attribute {name!r}")
    return getattr(importlib.import_module(f"egattn.{_HOMES[name]}"), name)


def __dir__() -> list[str]:
    return [*__all__, *_MODULES]
