"""What a training is told."""

import dataclasses
import math
from pathlib import Path
from typing import Annotated, Any, Literal

import tyro

from egattn.optimizer import OptimizerConfig
from egattn.run import RunConfig
from experiments.active_matter.controls import has_controls
from experiments.active_matter.systems import DEFAULTS, Name, SystemConfig

Objective = Literal["implicit", "hutchinson", "denoising", "one-step", "velocity"]

EMA = (0.999, 0.9999)
"""Decays of the averages of parameters, see `TrainConfig.ema`."""


@dataclasses.dataclass(frozen=True)
class PenaltyConfig:
    """Weights of the stationarity penalties, per component of z."""

    divergence: float = 0.0
    """Of (E div v)^2."""
    advection: float = 0.0
    """Of (E v.s)^2."""
    residual: float = 0.0
    """Of E[(div v + v.s)^2]."""

    def __post_init__(self):
        """Checks the values."""
        for name, weight in dataclasses.asdict(self).items():
            if not (weight >= 0 and math.isfinite(weight)):
                raise ValueError(f"penalty.{name} must be >= 0 and finite, got {weight}")

    @property
    def any(self) -> bool:
        """Whether there is one."""
        return bool(self.divergence or self.advection or self.residual)


@dataclasses.dataclass(frozen=True)
class TrainConfig(RunConfig):
    """A training of a system's score, or of the velocity of its probability flow."""

    system: Annotated[Name, tyro.conf.Suppress] = "trap"
    """The system, named before the run."""
    speed: float = 0.2
    """v0, of each component of the propulsion."""
    particles: int = 64
    """How many, of a crystal or cluster."""
    noise: float = 0.1
    """eps, thermal noise of positions."""
    packing: float = 0.1
    """Share of the cluster's box that particles cover."""
    objective: Objective = "implicit"
    """implicit: score matching with the exact divergence; hutchinson: with an estimate of it;
    denoising: with `sigma`; one-step: denoising of an Euler step; velocity: matching of
    displacements, without a score."""
    penalty: PenaltyConfig = dataclasses.field(default_factory=PenaltyConfig)
    """Stationarity penalties."""
    sigma: float = 0.1
    """Standard deviation of the noise of denoising, which smoothes the density that is learned."""
    duration: float = 0.01
    """Time over which displacements are taken for velocity matching."""
    substeps: int = 2
    """Steps of the integrator in this time."""
    width: int = 64
    """Width of layers."""
    layers: int = 3
    """Hidden layers, or blocks of attention."""
    heads: int = 4
    """Heads of attention."""
    flow_features: bool = True
    """Whether a transformer is told where flows lead."""
    linear_samples: int = 1024
    """Trajectories from whose start the best linear answer is solved for, where training begins."""
    optimizer: OptimizerConfig = dataclasses.field(default_factory=OptimizerConfig)
    """AdamW."""
    ema: Literal["none", "0.999", "0.9999"] = "0.999"
    """Which average of the parameters evaluations use; both are kept. They differ from step 9,000
    on: before, both are of about the last ninth of the steps."""
    batch_size: int = 256
    """Trajectories per step."""
    stationary_weights: bool = False
    """Whether a step's trajectories are weighted so that simple functions are stationary in them,
    as `egattn.flow.stationary_weights` does."""
    trajectories: int = 4096
    """Trajectories that are trained on in turn; each moves on before its turn."""
    refresh: float = 1.0
    """Time by which they move on."""
    data: Path | None = None
    """Snapshots to start from, as `simulate` writes them; by default they are drawn."""
    evaluate_samples: int = 1024
    """Held-out snapshots of an evaluation during the training."""
    seed: int = 0
    """Of parameters, trajectories and noise."""

    def __post_init__(self):
        """Checks the values."""
        super().__post_init__()
        for name in ("substeps", "width", "layers", "heads", "batch_size"):
            self.check_at_least(name, 1)
        self.check_at_least("trajectories", 1)
        for name in ("linear_samples", "evaluate_samples"):
            self.check_at_least(name, 2)
        for name in ("sigma", "duration", "refresh"):
            if not (getattr(self, name) > 0 and math.isfinite(getattr(self, name))):
                raise ValueError(f"{name} must be > 0 and finite, got {getattr(self, name)}")
        if self.trajectories % self.batch_size:
            raise ValueError(
                f"trajectories must be a multiple of batch_size = {self.batch_size}, "
                f"got {self.trajectories}"
            )
        if self.objective == "hutchinson" and self.penalty.residual:
            raise ValueError(
                "penalty.residual needs exact divergences, since the noise of estimated ones does "
                "not average out of their square; got objective hutchinson"
            )
        if self.stationary_weights and not has_controls(self.of_system()):
            raise ValueError(f"stationary_weights needs a system with controls, got {self.system}")
        if self.width % self.heads:
            raise ValueError(f"heads must divide width = {self.width}, got {self.heads}")
        self.of_system()

    def of_system(self) -> SystemConfig:
        """The system's part."""
        return SystemConfig(self.system, self.speed, self.particles, self.noise, self.packing)


def _preset(system: Name, learning_rate: float, **values: Any) -> TrainConfig:
    known = dataclasses.asdict(DEFAULTS[system])
    known["system"] = known.pop("name")
    options: dict[str, Any] = known | values
    optimizer = OptimizerConfig(learning_rate, "cosine", warmup=0.05, weight_decay=0.0, b2=0.99)
    return TrainConfig(
        run=tyro.MISSING,
        optimizer=optimizer,
        log_every=100,
        evaluate_every=500,
        checkpoint_every=500,
        **options,
    )


PRESETS: dict[str, TrainConfig] = {
    "trap": _preset("trap", 3e-3, steps=2000, width=32, layers=2),
    "ring": _preset(
        "ring",
        3e-3,
        steps=3500,
        # The flow's centre asks for averages over many trajectories: where it is nearly at rest.
        batch_size=4096,
        stationary_weights=True,
        refresh=2.0,
        penalty=PenaltyConfig(residual=10.0),
    ),
    "crystal": _preset(
        "crystal", 1e-3, steps=500, width=32, layers=1, batch_size=16, objective="hutchinson"
    ),
    # For a GPU, where most of a step is to move trajectories on, however many.
    "cluster": _preset(
        "cluster",
        1e-3,
        steps=3000,
        layers=2,
        batch_size=512,
        trajectories=8192,
        linear_samples=2048,
        refresh=2.0,
        objective="hutchinson",
        evaluate_samples=4096,
    ),
}
"""What each system's training is by default."""
