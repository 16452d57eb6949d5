"""Whose cost to tell."""

import dataclasses

import tyro

from egattn.model import DecoderConfig
from egattn.private.program import Gelu


@dataclasses.dataclass(frozen=True)
class CostConfig:
    """What one private forward pass of a decoder consists of."""

    preset: tyro.conf.Suppress[str] = "sm_ln_g"
    """The architecture that `model` started from."""
    model: DecoderConfig = dataclasses.field(default_factory=DecoderConfig)
    """Architecture; the defaults are GPT-2 small's with 128 tokens, as in the paper."""
    gelu: Gelu = "tanh"
    """Form of GELU, where the network has any; the paper does not say which."""
    paper: bool = False
    """Whether to show the paper's Tables 3, 4, 7 and 8 beside these counts instead."""
    json: bool = False
    """Whether to print JSON instead of tables."""

    def __post_init__(self):
        """Checks the values."""
        if self.paper and self.gelu != "tanh":
            raise ValueError("the paper's networks are shown with GELU in its tanh form")

    @classmethod
    def preset_defaults(cls, preset: str) -> "CostConfig":
        """Returns the defaults of a preset."""
        return cls(preset=preset, model=DecoderConfig.preset(preset))
