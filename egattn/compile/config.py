"""What to compile: the options of a training run that decide its step, and for which chips."""

import dataclasses
from pathlib import Path
from typing import Any, Literal

import tyro

from egattn.model import DecoderConfig
from egattn.optimizer import OptimizerConfig
from egattn.train.config import PenaltyConfig, TrainConfig

Effort = Literal["full", "O0"]
SEQUENCES_PER_CHIP = 8

MODEL_DEFAULTS: dict[str, Any] = {
    "vocab_size": 50_304,
    "context_length": 1024,
    "dtype": "bfloat16",
    "scan_layers": True,
}
"""Fields of the model that differ from `egattn train`'s defaults, which come from the data."""


@dataclasses.dataclass(frozen=True)
class CompileConfig:
    """The training step of a decoder for a TPU pod."""

    topology: str = "v5p:4x4x4"
    """Chips to compile for: v4:XxYxZ, v5e:XxY, v5p:XxYxZ or v6e:XxY."""
    mesh: str | None = None
    """Chips per mesh axis, e.g. replica=8,fsdp=64; default: as many on fsdp as divide the model's
    width, but on v4 and v5p at most half, the rest on replica."""
    preset: tyro.conf.Suppress[str] = "sm_ln_g"
    """The architecture that `model` started from."""
    model: DecoderConfig = dataclasses.field(
        default_factory=lambda: DecoderConfig.preset("sm_ln_g", **MODEL_DEFAULTS)
    )
    """Architecture."""
    penalty: PenaltyConfig = dataclasses.field(default_factory=PenaltyConfig)
    """Entropy penalty."""
    optimizer: OptimizerConfig = dataclasses.field(default_factory=OptimizerConfig)
    """Optimiser and schedule."""
    batch_size: int | None = None
    """Sequences per step over all chips and microbatches; default: 8 per chip and microbatch."""
    accumulation: int = 1
    """Microbatches a step is computed in."""
    effort: Effort = "full"
    """XLA's optimisation: full as on a pod; O0 compiles several times faster, but another program
    with other memory and collectives."""
    search: bool = False
    """Whether to try meshes and list those that fit, instead of compiling for one."""
    search_limit: int = 6
    """Meshes that a search compiles, the most promising first."""
    json: bool = False
    """Whether to print JSON instead of tables."""

    def __post_init__(self):
        """Checks the values."""
        for name in ("accumulation", "search_limit"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be positive, got {getattr(self, name)}")
        if self.search and self.mesh is not None:
            raise ValueError(f"a search chooses the mesh: expected no mesh, got {self.mesh!r}")

    @classmethod
    def preset_defaults(cls, preset: str) -> "CompileConfig":
        """Returns the defaults of a preset: those of a training run, for a corpus like GPT-2's."""
        config = TrainConfig.preset_defaults(preset, Path(), **MODEL_DEFAULTS)
        return cls(preset=preset, model=config.model, penalty=config.penalty)

    def train_config(self, chips: int) -> TrainConfig:
        """The training run whose step is compiled for so many chips.

        Raises:
          ValueError: If it could not be trained.
        """
        batch_size = self.batch_size
        if batch_size is None:
            batch_size = SEQUENCES_PER_CHIP * chips * self.accumulation
        return TrainConfig(
            run=Path(),
            preset=self.preset,
            model=self.model,
            penalty=self.penalty,
            optimizer=self.optimizer,
            batch_size=batch_size,
            accumulation=self.accumulation,
            mesh=self.mesh,
        )
