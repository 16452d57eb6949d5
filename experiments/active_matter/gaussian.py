"""Linear forces, F = -H (x - c): law, score and entropy production from linear algebra."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float


class Gaussian(NamedTuple):
    """The stationary law of particles in a linear force, in double precision.

    Rows and columns are positions, then propulsions, of all particles' dimensions.
    """

    center: np.ndarray
    """Mean positions [N, d]."""
    covariance: np.ndarray
    """C [2 N d, 2 N d]."""
    score_matrix: np.ndarray
    """-C^-1: the score is this times z - E z."""
    epr_x: float
    """Entropy production of positions, of the whole system."""
    epr_g: float
    """Entropy production of propulsions, which is also E div_g v_g."""

    @property
    def epr(self) -> float:
        """Entropy production of the whole system."""
        return self.epr_x + self.epr_g

    def score(self, z: Float[Array, "2 particles dimensions"]) -> Float[Array, "..."]:
        """The exact score."""
        away = z - jnp.stack([jnp.asarray(self.center, z.dtype), jnp.zeros_like(z[1])])
        return (jnp.asarray(self.score_matrix, z.dtype) @ away.reshape(-1)).reshape(z.shape)

    def sample(self, key: Array) -> Float[Array, "2 particles dimensions"]:
        """Draws one z of the law."""
        root = np.linalg.cholesky(self.covariance)
        noise = jax.random.normal(key, (len(root),))
        z = (jnp.asarray(root, noise.dtype) @ noise).reshape(2, *self.center.shape)
        return z.at[0].add(jnp.asarray(self.center, noise.dtype))


def gaussian(
    hessian: np.ndarray, center: np.ndarray, speed: float, rate: float, noise: float
) -> Gaussian:
    """Solves dx = (-H (x - c) + v0 g) dt + sqrt(2 eps) dW, g of unit variance and rate gamma.

    Args:
      hessian: H [N d, N d], symmetric and positive definite.
      center: c [N, d].
      speed: v0.
      rate: gamma.
      noise: eps > 0.

    Returns:
      The law: C_gg = 1, C_xg = v0 (H + gamma)^-1, C_xx = H^-1 (eps + v0^2 (H + gamma)^-1).
    """
    unit = np.eye(len(hessian))
    slow = np.linalg.inv(hessian + rate * unit)
    cross = speed * slow
    positions = np.linalg.solve(hessian, noise * unit + speed**2 * slow)
    covariance = np.block([[positions, cross], [cross, unit]])
    covariance = (covariance + covariance.T) / 2
    score = -np.linalg.inv(covariance)
    drift = np.block([[-hessian, speed * unit], [0 * unit, -rate * unit]])
    diffusion = np.repeat([noise, rate], len(unit))
    velocity = drift - diffusion[:, None] * score
    squares = np.diag(velocity @ covariance @ velocity.T) / diffusion
    n = len(unit)
    return Gaussian(center, covariance, score, float(squares[:n].sum()), float(squares[n:].sum()))


def hexagonal(particles: int, spacing: float = 2.0) -> np.ndarray:
    """The sites [N, 2] of a hexagonal lattice that are nearest to one of them, centred."""
    reach = range(-particles, particles + 1) if particles < 8 else range(-12, 13)
    if particles > 400:
        raise ValueError(f"a crystal has at most 400 particles, got {particles}")
    sites = np.array([(i + j / 2, j * np.sqrt(3) / 2) for i in reach for j in reach])
    # Ties go by angle: the same sites on every machine.
    order = np.lexsort((np.arctan2(sites[:, 1], sites[:, 0]), np.round((sites**2).sum(1), 6)))
    chosen = spacing * sites[order[:particles]]
    return chosen - chosen.mean(0)


def springs(sites: np.ndarray, constant: float, trap: float, reach: float) -> np.ndarray:
    """The matrix H [N d, N d] of springs at rest between near sites, each pinned by a trap.

    Args:
      sites: Positions at rest [N, d].
      constant: Spring constant.
      trap: Stiffness that holds each particle at its site.
      reach: Sites nearer than this are connected.
    """
    count, dimensions = sites.shape
    delta = sites[:, None] - sites[None]
    distance = np.linalg.norm(delta, axis=-1)
    near = (distance > 0) & (distance < reach)
    along = delta / np.where(near, distance, 1)[..., None]
    blocks = constant * near[..., None, None] * along[..., :, None] * along[..., None, :]
    hessian = -blocks
    hessian[np.arange(count), np.arange(count)] = blocks.sum(1) + trap * np.eye(dimensions)
    return hessian.transpose(0, 2, 1, 3).reshape(count * dimensions, -1)
