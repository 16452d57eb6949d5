"""AdamW as the paper trains: warm-up, decay, clipping, weight decay on matrices only."""

import dataclasses
from typing import Any, Literal, get_args

import jax
import optax

from egattn._spelling import unknown

Schedule = Literal["linear", "cosine", "constant"]

# Warm-up by default: share of the steps; at least so many, but no more than this share.
_SHARE, _LEAST, _MOST = 0.05, 100, 0.3
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
    warmup: float | None = None
    """Share of the steps with linear warm-up; nets without LayerNorm want up to 0.3. Default: 0.05,
    as in the paper, but 100 steps where those are 0.3 of all at most, else 0.3."""
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
        if self.warmup is not None and not 0 <= self.warmup <= 1:
            raise ValueError(f"warmup must lie in [0, 1], got {self.warmup}")
        # As float32 has them: to it 1 - 1e-9 is 1, 1e-50 is 0, and 1e39 infinite.
        for name in ("b1", "b2"):
            if not 0 <= getattr(self, name) < 1 - 2**-25:
                raise ValueError(f"{name} must lie in [0, 1), got {getattr(self, name)}")
        for name in ("learning_rate", "eps"):
            if not 2**-126 <= getattr(self, name) < 2**127:
                raise ValueError(f"{name} must be > 0 and finite, got {getattr(self, name)}")
        if not 0 <= self.weight_decay < 2**127:
            raise ValueError(f"weight_decay must be >= 0 and finite, got {self.weight_decay}")
        if not self.clip > 0:
            raise ValueError(f"clip must be > 0, got {self.clip}")


def _warmup_steps(config: OptimizerConfig, steps: int) -> int:
    """Steps of a run's warm-up.

    Few of them cost much whatever their share: AdamW's first steps move every parameter by about
    the learning rate, and sharpen attention for good.
    """
    if config.warmup is None:
        return round(max(_SHARE * steps, min(_LEAST, _MOST * steps)))
    return round(config.warmup * steps)


def make_schedule(config: OptimizerConfig, steps: int) -> optax.Schedule:
    """Returns the learning rate as a function of the step, for a run of `steps` steps."""
    warmup = _warmup_steps(config, steps)
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
