"""What a training run is: one frozen dataclass, written beside the checkpoints as JSON."""

import dataclasses
import math
from pathlib import Path
from typing import Any, Literal, get_args

import tyro

from egattn._config import LOCAL, RUNTIME
from egattn._spelling import unknown
from egattn.data import load_manifest
from egattn.entropy import Kind, Reduction
from egattn.model import PRESETS, DecoderConfig
from egattn.optimizer import OptimizerConfig
from egattn.run import RunConfig, RunDirectory
from egattn.run.directory import local_path

Ceiling = Literal["log", "row"]
TrainingReduction = Literal["mean", "head", "sum"]


@dataclasses.dataclass(frozen=True)
class PenaltyConfig:
    """The entropy penalty, see `egattn.entropy_penalty`."""

    weight: float = 0.0
    """Factor lambda; 0 turns the penalty off. For "mean", the published lambda times B T."""
    tolerance: float = 0.2
    """Half-width gamma of the free margin, a fraction of the maximum entropy."""
    kind: Kind = "hard"
    """Full square outside the margin as published, or only the excess over it."""
    reduction: TrainingReduction = "mean"
    """Penalty per position averaged, of the head's mean, or per position summed."""
    ceiling: Ceiling = "log"
    """Maximum entropy: log T for every row, or the log of the keys that a row sees."""
    warmup: float = 0.0
    """Share of the steps over which lambda rises linearly from 0."""

    def __post_init__(self):
        """Checks the values."""
        for name, choices in (("kind", Kind), ("reduction", Reduction), ("ceiling", Ceiling)):
            if getattr(self, name) not in get_args(choices):
                raise ValueError(unknown(f"penalty {name}", getattr(self, name), get_args(choices)))
        for name in ("weight", "tolerance"):
            if not 0 <= getattr(self, name) < math.inf:
                raise ValueError(
                    f"penalty {name} must be >= 0 and finite, got {getattr(self, name)}"
                )
        if not 0 <= self.warmup <= 1:
            raise ValueError(f"penalty warmup must lie in [0, 1], got {self.warmup}")


@dataclasses.dataclass(frozen=True)
class TrainConfig(RunConfig):
    """A training run of a decoder."""

    preset: tyro.conf.Suppress[str] = "sm_ln_g"
    """The architecture that `model` started from."""
    data: Path = dataclasses.field(default=Path("data/python"), metadata=LOCAL)
    """Directory written by `egattn prepare`."""
    data_sha256: tyro.conf.Suppress[str] = ""
    """Checksum of the data, filled in when training starts."""
    tokenizer_sha256: tyro.conf.Suppress[str] = ""
    """Checksum of the data's tokenizer, filled in when training starts."""
    init_from: Path | None = dataclasses.field(default=None, metadata=LOCAL)
    """Run directory, say of `egattn convert`, whose newest checkpoint gives the weights to start
    from."""
    init_sha256: tyro.conf.Suppress[str] = ""
    """Checksum of that checkpoint, filled in when training starts."""
    model: DecoderConfig = dataclasses.field(default_factory=DecoderConfig)
    """Architecture."""
    penalty: PenaltyConfig = dataclasses.field(default_factory=PenaltyConfig)
    """Entropy penalty."""
    optimizer: OptimizerConfig = dataclasses.field(default_factory=OptimizerConfig)
    """Optimiser and schedule."""
    batch_size: int = 64
    """Sequences per step over all devices and microbatches."""
    accumulation: int = dataclasses.field(default=1, metadata=RUNTIME)
    """Microbatches a step is computed in; changes memory, not numbers."""
    seed: int = 0
    """Seed of initial parameters and of the data's order."""
    mesh: str | None = dataclasses.field(default=None, metadata=RUNTIME)
    """Devices per mesh axis, e.g. replica=2,fsdp=4; default: all on replica."""
    evaluate_windows: int = dataclasses.field(default=512, metadata=RUNTIME)
    """Validation windows per evaluation; the last one uses the whole split."""

    def __post_init__(self):
        """Checks the values."""
        super().__post_init__()
        for path in (self.data, self.init_from):
            local_path(path or Path())
        for name in ("batch_size", "accumulation", "evaluate_windows"):
            self.check_at_least(name, 1)
        if not 0 <= self.seed < 2**32:
            raise ValueError(f"seed must lie in [0, 2^32), got {self.seed}")
        if self.batch_size % self.accumulation:
            raise ValueError(
                f"batch_size must be divisible by accumulation, "
                f"got {self.batch_size} and {self.accumulation}"
            )
        if self.penalty.weight > 0 and self.model.threshold is None:
            raise ValueError("a penalty needs the model's threshold, e.g. 0.5, got None")

    @classmethod
    def preset_defaults(cls, preset: str, run: Path, **model: Any) -> "TrainConfig":
        """Returns the defaults of a preset, its penalty included.

        Args:
          preset: Name of a `DecoderConfig` preset.
          run: Run directory.
          **model: Fields of the model's config that replace the preset's.
        """
        config = DecoderConfig.preset(preset, **model)
        penalty = PenaltyConfig(weight=PRESETS[preset].penalty_weight)
        return cls(run, preset=preset, model=config, penalty=penalty)

    @classmethod
    def for_data(
        cls, run: Path, data: Path, preset: str = "sm_ln_g", init_from: Path | None = None
    ) -> "TrainConfig":
        """Returns the defaults of a preset for prepared data: their vocabulary and their length.

        Args:
          run: Run directory.
          data: Directory written by `egattn prepare`.
          preset: Name of a `DecoderConfig` preset.
          init_from: Run directory to start from, whose sizes are then the defaults.

        Raises:
          FileNotFoundError: If there are no data, or no run to start from.
          ValueError: If either is damaged, or the preset is unknown.
        """
        manifest = load_manifest(local_path(data), verify=False)
        sizes = {"vocab_size": manifest.vocab_size, "context_length": manifest.context_length}
        if init_from is not None:
            sizes |= inherited(init_from)
        config = cls.preset_defaults(preset, run, **sizes)
        return dataclasses.replace(config, data=data, init_from=init_from)

    @classmethod
    def read(cls, run: Path) -> "TrainConfig":
        """Returns the config of a run directory, see `RunDirectory.read_config`."""
        return RunDirectory(run).read_config(cls)

    def advice(self, before: RunConfig) -> str:
        """Says how to train longer."""
        if self.steps == before.steps:
            return ""
        return (
            f"; the number of steps is part of the schedule: to train on from its weights use "
            f"another directory and --init-from {self.run}"
        )


# All that fixes the shapes of what can be taken; what a preset decides is not among them.
_INHERITED = (
    *("num_layers", "num_heads", "num_kv_heads", "embed_dim", "hidden_dim"),
    *("biases", "tie_embeddings"),
)


def inherited(directory: Path) -> dict[str, Any]:
    """Fields of the model's config that a run from another one's weights has unless told otherwise.

    Raises:
      FileNotFoundError: If it is not a run directory.
    """
    model = TrainConfig.read(directory).model
    return {name: getattr(model, name) for name in _INHERITED}
