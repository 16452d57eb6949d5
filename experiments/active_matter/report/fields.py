"""What is drawn: velocity, score and their divergences on snapshots, of a network or exact."""

import functools
from typing import NamedTuple

import jax
import numpy as np
from jaxtyping import Array, Float

from egattn.flow import Field, divergence_terms, velocity
from experiments.active_matter.fokker_planck import Solution
from experiments.active_matter.systems import System

# Evaluations of a field with one tangent that one piece of work may consist of.
_PIECE = 16384


class Fields(NamedTuple):
    """Velocity and score on S snapshots, in double precision."""

    system: System
    """The system."""
    z: np.ndarray
    """Snapshots [S, 2, N, d]."""
    velocity: np.ndarray
    """v [S, 2, N, d]."""
    divergence: np.ndarray
    """d v_i / d z_i [S, 2, N, d]."""
    drift: np.ndarray
    """b [S, 2, N, d]."""
    drift_divergence: np.ndarray
    """div b of each particle's position and propulsion [S, 2, N]."""

    @property
    def diffusion(self) -> np.ndarray:
        """D, as [2, 1, 1]."""
        return self.system.diffusion

    @property
    def production(self) -> np.ndarray:
        """Local entropy production v_i^2 / D_i [S, 2, N, d]."""
        return self.velocity**2 / self.diffusion

    @property
    def score(self) -> np.ndarray:
        """s = (b - v) / D [S, 2, N, d]."""
        return (self.drift - self.velocity) / self.diffusion

    @property
    def score_divergence(self) -> np.ndarray:
        """div s of each particle's position and propulsion [S, 2, N]."""
        return (self.drift_divergence - self.divergence.sum(-1)) / self.diffusion[..., 0]

    @property
    def advection(self) -> np.ndarray:
        """v_i s_i [S, 2, N, d]."""
        return self.velocity * self.score


def measured(
    system: System, velocity: Field, z: Float[Array, "snapshots 2 particles dimensions"]
) -> Fields:
    """Takes a velocity's exact divergences on snapshots.

    Args:
      system: The system.
      velocity: v of one state.
      z: The snapshots.
    """

    def of_one(z):
        v, terms = divergence_terms(velocity, z)
        return v, terms, system.drift(z), system.drift_divergence(z)

    piece = max(1, _PIECE // (2 * system.size * system.particles))
    found = jax.jit(functools.partial(jax.lax.map, of_one, batch_size=piece))(z)
    return Fields(system, *(np.asarray(x, float) for x in (z, *found)))


def exact(system: System, solution: Solution | None, z: Array) -> Fields | None:
    """The exact fields on snapshots, where the answer is known.

    Args:
      system: The system.
      solution: The ring's.
      z: The snapshots [S, 2, N, d].
    """
    if system.exact is not None:
        return measured(system, velocity(system.process, system.exact.score), z)
    if solution is None:
        return None
    # The drift of any velocity.
    known = measured(system, lambda z: z, z)
    ring = solution.fields(known.z[..., 0, 0])
    v, terms = (x[..., None, None] for x in (ring.velocity, ring.divergence))
    return known._replace(velocity=v, divergence=terms)
