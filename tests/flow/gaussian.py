"""Linear processes dz = B z dt + sqrt(2 D) dW, solved in float64 without the library."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
from scipy.linalg import solve_continuous_lyapunov

from egattn import flow


@dataclasses.dataclass(frozen=True)
class Gaussian:
    """One process and its exact stationary state."""

    matrix: np.ndarray
    """B, [n, n]."""
    diffusion: np.ndarray
    """D, [n]."""

    @property
    def covariance(self) -> np.ndarray:
        """C with B C + C B^T + 2 D = 0."""
        return solve_continuous_lyapunov(self.matrix, -2 * np.diag(self.diffusion))

    @property
    def score(self) -> np.ndarray:
        """S with s = S z."""
        return -np.linalg.inv(self.covariance)

    @property
    def velocity(self) -> np.ndarray:
        """V with v = V z."""
        return self.matrix - np.diag(self.diffusion) @ self.score

    @property
    def production(self) -> np.ndarray:
        """E v_i^2 / D_i of each component with D_i > 0, and 0 of others."""
        squares = np.diag(self.velocity @ self.covariance @ self.velocity.T)
        noisy = self.diffusion > 0
        return np.where(noisy, squares / np.where(noisy, self.diffusion, 1), 0)

    def process(self, relaxation: np.ndarray | None = None) -> flow.Process:
        """The same for the library."""
        return flow.Process(linear(self.matrix), jnp.asarray(self.diffusion), relaxation=relaxation)


def linear(matrix: np.ndarray) -> flow.Field:
    """The field z -> M z."""
    weights = jnp.asarray(matrix)
    return lambda z: weights @ z


def draw(covariance: np.ndarray, count: int, seed: int = 0) -> jax.Array:
    """Normal samples whose mean is 0 and covariance exact, lest tests wait for averages."""
    z = np.random.default_rng(seed).normal(size=(count, len(covariance)))
    z -= z.mean(0)
    whitened = z @ np.linalg.inv(np.linalg.cholesky(z.T @ z / count)).T
    return jnp.asarray(whitened @ np.linalg.cholesky(covariance).T)


def points(covariance: np.ndarray) -> jax.Array:
    """The 2 n points over which squares and products have exactly their normal means."""
    root = np.sqrt(len(covariance)) * np.linalg.cholesky(covariance).T
    return jnp.asarray(np.concatenate([root, -root]))


def active(stiffness: np.ndarray, rate: float, noise: float, speed: float) -> Gaussian:
    """Self-propelled particles held by springs: z is all positions, then all propulsions.

    dx = (-H x + v0 g) dt + sqrt(2 eps) dW, dg = -gamma g dt + sqrt(2 gamma) dW.
    """
    n = len(stiffness)
    lower = [np.zeros((n, n)), -rate * np.eye(n)]
    matrix = np.block([[-stiffness, speed * np.eye(n)], lower])
    return Gaussian(matrix, np.repeat([noise, rate], n).astype(float))


def trap(stiffness: float = 0.05, rate: float = 0.1, noise: float = 0.1, speed: float = 0.2):
    """One of them in a harmonic trap, one Cartesian component: z = (x, g)."""
    return active(np.array([[stiffness]]), rate, noise, speed)


def springs(count: int, seed: int) -> np.ndarray:
    """A random stiffness matrix H, symmetric and positive definite."""
    k = np.random.default_rng(seed).normal(size=(count, count))
    return k @ k.T / count + 0.2 * np.eye(count)


def crystal(radius: float = 1.01, anchor: float = 0.05) -> np.ndarray:
    """Stiffness [2 N, 2 N] of a hexagonal patch of springs of length 1, weakly anchored.

    Components in the order of [N, 2]; N = 7 for the default radius.
    """
    rows = range(-int(2 * radius) - 1, int(2 * radius) + 2)
    sites = np.array([(i + j / 2, j * np.sqrt(3) / 2) for i in rows for j in rows])
    sites = sites[np.linalg.norm(sites, axis=1) < radius]
    stiffness = anchor * np.eye(2 * len(sites))
    for i, one in enumerate(sites):
        for j, other in enumerate(sites):
            if i != j and np.linalg.norm(one - other) < 1.01:
                pull = np.outer(one - other, one - other)
                stiffness[2 * i : 2 * i + 2, 2 * i : 2 * i + 2] += pull
                stiffness[2 * i : 2 * i + 2, 2 * j : 2 * j + 2] -= pull
    return stiffness
