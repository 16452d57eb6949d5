"""Evaluates a trained network on held-out snapshots, with every check of its answer."""

import dataclasses
import functools
from pathlib import Path
from typing import Any

import jax
import numpy as np
import tyro

from experiments.active_matter.controls import controls, enough
from experiments.active_matter.fokker_planck import Ring, production
from experiments.active_matter.measure import Measure, Measured, in_words
from experiments.active_matter.ring_flow import is_published, portrait, portrait_in_words
from experiments.active_matter.simulation import move, stationary
from experiments.active_matter.snapshots import read_snapshots
from experiments.active_matter.systems import System
from experiments.active_matter.trained import Trained, load

# Snapshots, and how many of them have exact divergences: those of many particles cost one tangent
# for each component of the state.
SAMPLES = {
    "trap": (16384, 16384),
    "ring": (32768, 32768),
    "crystal": (2048, 128),
    "cluster": (512, 16),
}
# Of many particles: snapshots of each trajectory, and least number of trajectories.
_TIMES, _TRAJECTORIES = 8, 64


@dataclasses.dataclass(frozen=True)
class EvaluateConfig:
    """Which run, and on what."""

    run: tyro.conf.Positional[Path]
    """Run directory."""
    json: bool = False
    """Prints JSON."""
    step: int | None = None
    """Checkpoint; the newest by default."""
    samples: int | None = None
    """Held-out snapshots; by default as many as the system wants."""
    exact: int | None = None
    """Of these, how many have exact divergences; the others' are estimated."""
    data: Path | None = None
    """Snapshots to evaluate on, as `simulate` writes them; by default new ones are drawn."""
    seed: int = 1
    """Of the snapshots; the training draws from its own."""

    def __post_init__(self):
        """Checks the values."""
        for name, least in (("samples", 2), ("exact", 2)):
            if getattr(self, name) is not None and getattr(self, name) < least:
                raise ValueError(f"{name} must be at least {least}, got {getattr(self, name)}")


def evaluate(config: EvaluateConfig) -> dict[str, Any]:
    """Returns what `Measured.values` does, and what is known of the system beside it.

    Raises:
      FileNotFoundError: If there is no such run or file.
      ValueError: If the snapshots are of another system.
    """
    trained = load(config.run, config.step)
    samples, exact = SAMPLES[trained.config.system]
    samples = samples if config.samples is None else config.samples
    if config.data is None:
        z, trajectories = held_out(trained.system, samples, config.seed)
    else:
        z, trajectories = read_snapshots(config.data, trained.system)
        if not 2 <= trajectories <= len(z):
            raise ValueError(
                f"{config.data} has {len(z)} snapshots of {trajectories} trajectories, expected at "
                "least 2 trajectories: errors are those of independent ones"
            )
    exact = exact if config.exact is None else config.exact
    return evaluation(trained, z, trajectories, min(exact, len(z)))


def evaluation(trained: Trained, z: Any, trajectories: int, exact: int) -> dict[str, Any]:
    """As `evaluate`, of snapshots that are there already; arguments as `measured` takes them."""
    values = {"system": trained.config.system, "speed": trained.config.speed, "step": trained.step}
    values |= measured(trained, z, trajectories, exact).values()
    known = trained.system.exact
    if known is not None:
        size = trained.system.size
        for name in ("epr", "epr_x", "epr_g"):
            values[f"exact_{name}"] = getattr(known, name) / size
    if trained.config.system == "ring":
        on_grid = production(Ring(trained.config.speed, trained.config.noise))
        if on_grid is not None:
            x, g = on_grid.tolist()
            values |= {"exact_epr": x + g, "exact_epr_x": x, "exact_epr_g": g}
    if is_published(trained.config):
        values["portrait"] = portrait(trained)
    return values


def measured(trained: Trained, z: Any, trajectories: int, exact: int) -> Measured:
    """Measures on snapshots, the first of them with exact divergences.

    Args:
      trained: The network.
      z: Snapshots [snapshots, 2, N, d]; those of all trajectories at one time, then at the next.
      trajectories: How many they are of.
      exact: How many have exact divergences.
    """
    found = Measure(trained.system, trained.network)(trained.params, z[:exact])
    if exact < len(z):
        estimated = Measure(trained.system, trained.network, "hutchinson")
        found = found.followed_by(estimated(trained.params, z[exact:]))
    known = controls(trained.system, z) if enough(trained.system, trajectories) else None
    return found._replace(trajectories=trajectories, controls=known)


def held_out(system: System, samples: int, seed: int) -> tuple[np.ndarray, int]:
    """Draws stationary snapshots [samples, 2, N, d] of a seed; and of how many trajectories.

    Of many particles several are taken from each trajectory, some time apart.
    """
    key = jax.random.key(seed)
    if system.particles == 1 or system.exact is not None:
        z = jax.jit(functools.partial(stationary, system, samples=samples))(key)
        return np.asarray(z), samples
    trajectories = min(max(samples // _TIMES, _TRAJECTORIES), samples)
    z = jax.jit(functools.partial(stationary, system, samples=trajectories))(key)
    on = jax.jit(lambda z, key: move(system, z, key, system.spacing))
    frames = [z]
    while len(frames) * trajectories < samples:
        z = on(z, jax.random.fold_in(key, len(frames)))
        frames.append(z)
    return np.concatenate(frames)[:samples], trajectories


def describe(values: dict[str, Any]) -> str:
    """An evaluation in lines."""
    lines = [
        in_words(values),
        f"div v {values['div_v']:+.4f} +- {values['div_v_standard_error']:.4f}  "
        f"residual {values['residual_mean']:+.4f}, deviation {values['residual_std']:.4f} "
        f"(of div v {values['div_v_std']:.4f})",
        f"Stein's identity {values['stein']:.4f} of 1  "
        f"score matching {values['score_matching']:.4f} +- "
        f"{values['score_matching_standard_error']:.4f} per component",
    ]
    if "exact_epr" in values:
        lines.append(
            f"exact {values['exact_epr']:.4f} (x {values['exact_epr_x']:.4f}, "
            f"g {values['exact_epr_g']:.4f})"
        )
    if "portrait" in values:
        lines.append(portrait_in_words(values["portrait"]))
    return "\n".join(lines)
