"""The probability flow of a gyrator against its exact orbits."""

import functools
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.linalg import expm

from egattn import flow
from tests.flow.gaussian import Gaussian, linear

GYRATOR = Gaussian(np.array([[-1, -0.5], [-0.5, -1]]), np.array([1.0, 5.0]))
FREQUENCY = np.abs(np.linalg.eigvals(GYRATOR.velocity).imag).max()
# Four turns of the ellipses, in eighths.
TIMES = np.linspace(0, 8 * np.pi / FREQUENCY, 33)


def velocity(z):
    """Of a gyrator in the first two components; the third goes round a circle, from 0 to 2."""
    turn = flow.velocity(GYRATOR.process(), linear(GYRATOR.score))(z[:2])
    return jnp.append(turn, jnp.where((z[2] >= 0) & (z[2] < 2), 1.0, jnp.nan))


@pytest.fixture(scope="module")
def orbits():
    z = np.random.default_rng(0).uniform(0.2, 1.5, (3, 3)).astype(np.float32)
    solve = functools.partial(
        flow.probability_flow,
        velocity,
        period=np.array([np.inf, np.inf, 2]),
        rtol=1e-6,
        atol=1e-7,
    )
    times = jnp.asarray(TIMES, jnp.float32)
    return z, np.asarray(jax.jit(jax.vmap(solve, (0, None)))(jnp.asarray(z), times))


def test_orbits_are_the_exact_ones(orbits):
    z, found = orbits
    expected = np.stack([expm(GYRATOR.velocity * t) @ z[:, :2].T for t in TIMES])
    np.testing.assert_allclose(found[..., :2], np.moveaxis(expected, -1, 0), atol=2e-4)


def test_orbits_stay_on_lines_of_equal_density_and_close(orbits):
    z, found = orbits[0][:, :2], orbits[1][..., :2]
    exponent = np.einsum("oti,ij,otj->ot", found, -GYRATOR.score, found)
    np.testing.assert_allclose(exponent, exponent[:, :1] + 0 * exponent, rtol=1e-4)
    np.testing.assert_allclose(found[:, ::8], np.repeat(z[:, None], 5, 1), atol=2e-4)


def test_turns_around_a_period_add_up(orbits):
    z, found = orbits
    np.testing.assert_allclose(found[..., 2], z[:, None, 2] + TIMES, rtol=1e-5)


@pytest.mark.slow
def test_too_many_steps_are_an_error():
    solve = functools.partial(flow.probability_flow, lambda z: jnp.cos(100 * z), max_steps=5)
    with pytest.raises(RuntimeError, match="maximum number of solver steps"):
        jax.jit(solve)(jnp.ones(2), jnp.array([50.0]))


def test_without_diffrax_the_command_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "diffrax", None)
    with pytest.raises(ValueError, match=r"needs diffrax: .*pip install 'egattn\[flow\]'"):
        flow.probability_flow(lambda z: z, jnp.ones(2), jnp.ones(1))
