"""AdamW as the paper trains: warm-up, decay, clipping, weight decay on matrices only."""

import dataclasses
import math
from typing import Any, Literal, get_args

import jax
import optax

from egattn._spelling import unknown

Schedule = Literal["linear", "cosine", "constant"]

_DECAYED = ("kernel", "embedding", "head")


@dataclasses.dataclass(frozen=True)
class OptimizerConfig:
    """AdamW and its schedule.

    Reference:
      Jha & Reagen, arXiv 2501.03489, Appendix (training recipe).
    """

    learning_rate: float = 1e-3
    """Peak learning rate."""
    schedule: Schedule = "linear"
    """Shape after the warm-up: linear or cosine decay to 0, or constant."""
    warmup: float = 0.05
    """Share of the steps with linear warm-up; nets without LayerNorm want up to 0.3."""
    b1: float = 0.9
    """Decay of the first moment."""
    b2: float = 0.999
    """Decay of the second moment."""
    eps: float = 1e-8
    """Added to the root of the second moment."""
    weight_decay: float = 0.1
    """Decoupled weight decay of matrices."""
    clip: float = 1.0
    """Largest global gradient norm; inf for none."""

    def __post_init__(self):
        """Checks the values."""
        if self.schedule not in get_args(Schedule):
            raise ValueError(unknown("schedule", self.schedule, get_args(Schedule)))
        if not 0 <= self.warmup <= 1:
            raise ValueError(f"warmup must lie in [0, 1], got {self.warmup}")
        for name in ("b1", "b2"):
            if not 0 <= getattr(self, name) < 1:
                raise ValueError(f"{name} must lie in [0, 1), got {getattr(self, name)}")
        for name in ("learning_rate", "eps"):
            if not 0 < getattr(self, name) < math.inf:
                raise ValueError(f"{name} must be > 0 and finite, got {getattr(self, name)}")
        if not 0 <= self.weight_decay < math.inf:
            raise ValueError(f"weight_decay must be >= 0 and finite, got {self.weight_decay}")
        if not self.clip > 0:
            raise ValueError(f"clip must be > 0, got {self.clip}")


def make_schedule(config: OptimizerConfig, steps: int) -> optax.Schedule:
    """Returns the learning rate as a function of the step, for a run of `steps` steps."""
    warmup = round(config.warmup * steps)
    peak, rest = config.learning_rate, max(steps - warmup, 1)
    after = {
        "linear": optax.linear_schedule(peak, 0.0, rest),
        "cosine": optax.cosine_decay_schedule(peak, rest),
        "constant": optax.constant_schedule(peak),
    }[config.schedule]
    if warmup == 0:
        return after
    # From peak / warmup, not 0, so that no step is spent without learning.
    rise = optax.linear_schedule(peak / warmup, peak, max(warmup - 1, 1))
    return optax.join_schedules([rise, after], [warmup])


def make_optimizer(config: OptimizerConfig, steps: int) -> optax.GradientTransformation:
    """Returns clipping and AdamW for a run of `steps` steps."""
    return optax.chain(
        optax.clip_by_global_norm(config.clip),
        optax.adamw(
            make_schedule(config, steps),
            b1=config.b1,
            b2=config.b2,
            eps=config.eps,
            weight_decay=config.weight_decay,
            mask=decay_mask,
        ),
    )


def decay_mask(params: Any) -> Any:
    """True for matrices; False for biases, norms, gains, temperatures, thresholds and scalars.

    By name, because stacking the layers turns a vector per layer into something matrix-shaped.
    """
    return jax.tree_util.tree_map_with_path(lambda path, _: path[-1].key in _DECAYED, params)
