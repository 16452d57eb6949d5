"""What a training run is: one frozen dataclass, written beside the checkpoints as JSON."""

import dataclasses
import json
from pathlib import Path
from typing import Any, Literal, get_args

import tyro

from egattn._config import flatten, parse
from egattn._spelling import unknown
from egattn.entropy import Kind, Reduction
from egattn.model import DecoderConfig
from egattn.optimizer import OptimizerConfig
from egattn.run.processes import DistributedConfig

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
            if not getattr(self, name) >= 0:
                raise ValueError(f"penalty {name} must be >= 0, got {getattr(self, name)}")
        if not 0 <= self.warmup <= 1:
            raise ValueError(f"penalty warmup must lie in [0, 1], got {self.warmup}")


@dataclasses.dataclass(frozen=True)
class TrainConfig:
    """A training run."""

    run: tyro.conf.Positional[Path]
    """Run directory; made if missing, resumed if it holds this same run."""
    preset: tyro.conf.Suppress[str] = "sm_ln_g"
    """The architecture that `model` started from."""
    data: Path = Path("data/python")
    """Directory written by `egattn prepare`."""
    data_sha256: tyro.conf.Suppress[str] = ""
    """Checksum of the data, filled in when training starts."""
    tokenizer_sha256: tyro.conf.Suppress[str] = ""
    """Checksum of the data's tokenizer, filled in when training starts."""
    init_from: Path | None = None
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
    steps: int = 1000
    """Optimiser steps."""
    batch_size: int = 64
    """Sequences per step over all devices and microbatches."""
    accumulation: int = 1
    """Microbatches a step is computed in; changes memory, not numbers."""
    seed: int = 0
    """Seed of initial parameters and of the data's order."""
    skip_nonfinite: int = 0
    """Steps with a loss, gradient or entropy that is not finite that may be left out; the run stops
    at the next one."""
    mesh: str | None = None
    """Devices per mesh axis, e.g. replica=2,fsdp=4; default: all on replica."""
    distributed: DistributedConfig = dataclasses.field(default_factory=DistributedConfig)
    """Other processes of the job."""
    log_every: int = 10
    """Steps between log records."""
    evaluate_every: int = 100
    """Steps between evaluations; one more follows the last step."""
    evaluate_windows: int = 512
    """Validation windows per evaluation; the last one uses the whole split."""
    checkpoint_every: int = 100
    """Steps between checkpoints; the last step is always saved."""
    keep_checkpoints: int = 3
    """Newest checkpoints kept."""
    profile: tuple[int, int] | None = None
    """First and last step of a trace of host and device, written to RUN/profile."""

    def __post_init__(self):
        """Checks the values."""
        for field in dataclasses.fields(self):
            value = getattr(self, field.name)
            if field.type is int and value < (field.name not in ("seed", "skip_nonfinite")):
                raise ValueError(f"{field.name} must be positive, got {value}")
        if self.batch_size % self.accumulation:
            raise ValueError(
                f"batch_size must be divisible by accumulation, "
                f"got {self.batch_size} and {self.accumulation}"
            )
        if self.profile and not 1 <= self.profile[0] <= self.profile[1] <= self.steps:
            first, last = self.profile
            raise ValueError(
                f"profile needs its first and last step within 1 to {self.steps}, "
                f"got {first} and {last}"
            )
        if self.penalty.weight > 0 and self.model.threshold is None:
            raise ValueError("a penalty needs the model's threshold, e.g. 0.5, got None")

    @classmethod
    def preset_defaults(cls, preset: str, run: Path, **model: Any) -> "TrainConfig":
        """Returns the defaults of a preset: `ereg_...` turns the penalty on.

        Args:
          preset: Name of a `DecoderConfig` preset.
          run: Run directory.
          **model: Fields of the model's config that replace the preset's.
        """
        # The published sum's 1e-5 at 128 sequences of 128 positions, see PenaltyConfig.weight.
        weight = 0.16 if preset.startswith("ereg_") else 0.0
        config = DecoderConfig.preset(preset, **model)
        return cls(run, preset=preset, model=config, penalty=PenaltyConfig(weight=weight))


# Where and how a run is computed, as opposed to what is computed: may differ on resume.
RUNTIME_FIELDS = (
    "run",
    "data",
    "init_from",
    "skip_nonfinite",
    "mesh",
    "distributed.enabled",
    "distributed.coordinator",
    "distributed.num_processes",
    "distributed.process_id",
    "distributed.join_timeout",
    "distributed.heartbeat_timeout",
    "log_every",
    "evaluate_every",
    "evaluate_windows",
    "checkpoint_every",
    "keep_checkpoints",
    "profile",
    "model.remat",
    "model.scan_layers",
    "model.implementation",
)


def to_json(config: TrainConfig) -> str:
    """Returns the config as indented JSON."""
    return json.dumps(dataclasses.asdict(config), indent=2, default=str) + "\n"


def from_json(text: str) -> TrainConfig:
    """Reads what `to_json` wrote.

    Raises:
      ValueError: If a key is unknown or missing, or a value has another type.
    """
    return parse(TrainConfig, json.loads(text), "config")


def differences(a: TrainConfig, b: TrainConfig) -> list[str]:
    """Describes the fields in which two runs compute something else."""
    flat_a, flat_b = (dict(flatten(dataclasses.asdict(c))) for c in (a, b))
    return [
        f"{name}: {flat_a[name]} != {flat_b[name]}"
        for name in flat_a
        if flat_a[name] != flat_b[name] and name not in RUNTIME_FIELDS
    ]
