"""Control variates against exact means, and their errors against repeated measurements."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from egattn import flow
from tests.flow.gaussian import points, trap

pytestmark = pytest.mark.usefixtures("double")
TRAP = trap()


def products(z):
    """All of degree 2."""
    return jnp.outer(z, z)[jnp.triu_indices(len(z))]


def normal(rng, count: int) -> np.ndarray:
    return rng.multivariate_normal(np.zeros(2), TRAP.covariance, count)


def of_samples(process, observables, z):
    return np.asarray(jax.vmap(lambda z: flow.generator(process, observables, z))(jnp.asarray(z)))


def test_generator_of_polynomials(rng):
    z = rng.normal(size=2)
    x, g = z
    found = flow.generator(
        TRAP.process(), lambda z: jnp.stack([z[0] ** 2, z[0] * z[1] ** 3]), jnp.asarray(z)
    )
    drift = TRAP.matrix @ z
    first = 2 * x * drift[0] + 2 * 0.1
    second = g**3 * drift[0] + 3 * x * g**2 * drift[1] + 0.1 * 6 * x * g
    np.testing.assert_allclose(found, [first, second], rtol=1e-12)


def test_components_without_noise_only_drift():
    process = flow.Process(lambda z: -z, diffusion=np.array([0, 2.0]))
    found = flow.generator(process, lambda z: z**2, jnp.array([3.0, 5.0]))
    np.testing.assert_allclose(found, [-2 * 9, -2 * 25 + 2 * 2.0])


def test_its_stationary_mean_is_zero():
    found = of_samples(TRAP.process(), products, points(TRAP.covariance))
    np.testing.assert_allclose(found.mean(0), 0, atol=1e-12)
    assert np.abs(found).max() > 0.1


def test_what_controls_explain_has_no_error(rng):
    """A few samples give the exact entropy production, a quadratic function, to rounding."""
    z = normal(rng, 20)
    rates = (z @ TRAP.velocity.T) ** 2 / TRAP.diffusion
    controls = of_samples(TRAP.process(), products, z)
    found = flow.controlled(rates, controls)
    np.testing.assert_allclose(found.value, TRAP.production, rtol=1e-9)
    np.testing.assert_allclose(found.standard_error, 0, atol=1e-9)
    assert abs(rates.mean(0).sum() / TRAP.production.sum() - 1) > 0.05


def test_error_of_what_they_explain_in_part(rng):
    z = normal(rng, 40_000)
    x, controls = z[:, 0] / 3, of_samples(TRAP.process(), products, z)
    pairs = zip(np.cos(x).reshape(400, 100), controls.reshape(400, 100, 3), strict=True)
    values, errors = map(np.array, zip(*(flow.controlled(*pair) for pair in pairs), strict=True))
    variance = TRAP.covariance[0, 0] / 9
    exact = np.exp(-variance / 2)
    assert abs(values.mean() - exact) < 4 * values.std() / 20
    assert abs(np.sqrt((errors**2).mean()) / values.std() - 1) < 0.15
    plain = np.sqrt((1 + np.exp(-2 * variance)) / 2 - exact**2) / 10
    assert errors.mean() < 0.5 * plain


def test_weights_leave_every_expectation_and_take_the_noise():
    """Of a function that controls explain in part."""
    rng, count, repeats = np.random.default_rng(1), 1000, 200
    whiten = flow.whitening(of_samples(TRAP.process(), products, normal(rng, 5000)))
    z = normal(rng, repeats * count)
    controls = of_samples(TRAP.process(), products, z) @ whiten
    np.testing.assert_allclose(controls.T @ controls / len(controls), np.eye(3), atol=0.1)
    weights = jax.vmap(flow.stationary_weights)(jnp.asarray(controls).reshape(repeats, count, 3))
    y = z[:, 0].reshape(repeats, count) ** 4
    found = np.sum(np.asarray(weights) * y, 1)
    exact = 3 * TRAP.covariance[0, 0] ** 2
    assert abs(found.mean() - exact) < 4 * found.std() / np.sqrt(repeats)
    assert found.std() < 0.7 * y.mean(1).std()


def test_none_collinear_and_empty_ones(rng):
    y = rng.normal(size=(50, 2))
    value, error = flow.controlled(y, np.zeros((50, 0)))
    np.testing.assert_allclose(value, y.mean(0))
    np.testing.assert_allclose(error, y.std(0, ddof=1) / np.sqrt(50))
    c = rng.normal(size=(50, 1))
    one = flow.controlled(y, c)
    many = flow.controlled(y, np.concatenate([c, 3 * c, 0 * c], 1))
    np.testing.assert_allclose(many.value, one.value)
    np.testing.assert_allclose(many.standard_error, one.standard_error)


def test_error_where_controls_are_many(rng):
    y, c = rng.normal(size=(2000, 20)), rng.normal(size=(2000, 20, 8))
    values, errors = map(np.array, zip(*map(flow.controlled, y, c), strict=True))
    assert abs(np.sqrt((errors**2).mean()) / values.std() - 1) < 0.1


def test_too_few_samples():
    with pytest.raises(ValueError, match="stationary weights need at least 2 samples, got 1"):
        flow.stationary_weights(jnp.ones((1, 3)))
    with pytest.raises(ValueError, match="3 controls need at least 5 samples, got 4"):
        flow.controlled(np.ones(4), np.ones((4, 3)))
    with pytest.raises(ValueError, match=r"controls \[4 samples, controls\], got shape \(5, 1\)"):
        flow.controlled(np.ones(4), np.ones((5, 1)))
    with pytest.raises(ValueError, match="controls must be finite"):
        flow.controlled(np.ones(4), np.full((4, 1), np.nan))
