"""A linear model under every objective, on a Gaussian system: the exact minimiser, to 2 %."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from experiments.active_matter.config import PRESETS, PenaltyConfig
from experiments.active_matter.objective import make_loss
from experiments.active_matter.systems import RATE, TRAP, make_system

SPEED, NOISE, SAMPLES = 0.2, 0.1, 60_000
EVEN = jnp.full(SAMPLES, 1 / SAMPLES)


@pytest.fixture(scope="module")
def system():
    return make_system(PRESETS["trap"].of_system())


@pytest.fixture(scope="module")
def snapshots(system):
    return jax.vmap(system.start)(jax.random.split(jax.random.key(0), SAMPLES))


def correction(matrix, z):
    """A network that is linear in (x, g), alike in both dimensions."""
    return jnp.einsum("ab,bnd->and", matrix, z)


def best(objective, system, snapshots, **values):
    """The matrix at which the loss, a quadratic function of it, is least."""
    config = dataclasses.replace(PRESETS["trap"], objective=objective, **values)
    loss = make_loss(config, system)

    def of_matrix(entries):
        matrix = entries.reshape(2, 2)
        return loss(lambda z: correction(matrix, z), snapshots, EVEN, jax.random.key(1))[0]

    start = jnp.zeros(4)
    slope, curvature = jax.jit(jax.grad(of_matrix))(start), jax.jit(jax.hessian(of_matrix))(start)
    return -np.linalg.solve(np.asarray(curvature, float), np.asarray(slope, float)).reshape(2, 2)


def covariance() -> np.ndarray:
    cross = SPEED / (TRAP + RATE)
    return np.array([[NOISE / TRAP + SPEED * cross / TRAP, cross], [cross, 1.0]])


def expected(smoothed: np.ndarray) -> np.ndarray:
    """What is to be added to b / D to give the score -smoothed^-1 z."""
    drift = np.array([[-TRAP / NOISE, SPEED / NOISE], [0.0, -1.0]])
    return -np.linalg.inv(smoothed) - drift


def chain(step: float) -> np.ndarray:
    """Covariance after a step of the integrator, from the stationary one."""
    move = np.array([[1 - TRAP * step, SPEED * step], [0, np.exp(-RATE * step)]])
    noise = np.diag([2 * NOISE * step, 1 - np.exp(-2 * RATE * step)])
    return move @ covariance() @ move.T + noise


EXACT = [
    ("implicit", {}, covariance()),
    ("hutchinson", {}, covariance()),
    ("denoising", {"sigma": 0.3}, covariance() + 0.09 * np.eye(2)),
    ("one-step", {}, chain(0.01)),
    ("velocity", {"duration": 0.02}, covariance()),
]


@pytest.mark.parametrize(("objective", "values", "law"), EXACT, ids=[e[0] for e in EXACT])
def test_minimiser_is_the_exact_one(objective, values, law, system, snapshots):
    found = best(objective, system, snapshots, **values)
    np.testing.assert_allclose(found, expected(law), atol=0.02 * np.abs(expected(law)).max())


def test_loss_is_that_of_the_score(system, snapshots):
    exact = expected(covariance())
    loss = make_loss(PRESETS["trap"], system)
    value, _ = loss(lambda z: correction(jnp.float32(exact), z), snapshots, EVEN, jax.random.key(1))
    assert float(value) == pytest.approx(-np.trace(np.linalg.inv(covariance())) / 2, rel=0.02)


def test_penalties_vanish_at_the_exact_answer_and_nowhere_near(system, snapshots):
    penalty = PenaltyConfig(1.0, 1.0, 1.0)
    loss = make_loss(dataclasses.replace(PRESETS["trap"], penalty=penalty), system)
    exact = expected(covariance())
    _, right = loss(lambda z: correction(jnp.float32(exact), z), snapshots, EVEN, jax.random.key(1))
    wrong_score = exact - 0.1 * np.linalg.inv(covariance())
    _, wrong = loss(
        lambda z: correction(jnp.float32(wrong_score), z), snapshots, EVEN, jax.random.key(1)
    )
    assert float(right["residual"]) < 1e-10
    # A score too large by a tenth: 0.0214 in each of two independent dimensions.
    assert float(wrong["residual"]) == pytest.approx(2 * 0.0214**2 / 4, rel=0.05)
