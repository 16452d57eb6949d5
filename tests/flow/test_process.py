"""Processes refuse bad numbers; periods; velocity and score, one from the other."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from egattn import flow
from tests.flow.gaussian import draw, linear, trap

FINITE = st.floats(-1e3, 1e3, width=32)


def still(z):
    return 0 * z


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"diffusion": -0.1}, "diffusion must be >= 0 and finite everywhere, got -0.1"),
        ({"diffusion": np.array([0.1, np.nan])}, "diffusion must be >= 0 and finite .* got nan"),
        ({"diffusion": np.inf}, "diffusion must be >= 0 and finite everywhere, got inf"),
        ({"diffusion": 1, "period": np.array([np.inf, 0])}, "period must be > 0 .* got 0"),
        ({"diffusion": 1, "relaxation": jnp.array([1, -2])}, "relaxation must be >= 0 .* got -2"),
    ],
)
def test_bad_numbers_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        flow.Process(still, **options)


def test_numbers_may_be_known_later():
    @jax.jit
    def velocity(diffusion, z):
        return flow.velocity(flow.Process(still, diffusion), lambda z: -z)(z)

    np.testing.assert_allclose(velocity(jnp.float32(2), jnp.ones(3)), 2 * np.ones(3))


@settings(max_examples=50)
@given(FINITE, st.floats(0.5, 20, width=32), st.floats(-10, 10, width=32))
def test_wrapped_numbers_lie_in_the_period_and_differ_by_whole_ones(z, period, origin):
    wrapped = float(flow.wrap(jnp.float32(z), period, origin))
    # A number just below the origin is rounded to the end.
    assert origin - 1e-6 <= wrapped <= origin + period * (1 + 1e-6)
    turns = (z - wrapped) / period
    assert abs(turns - round(turns)) < 1e-3


@given(FINITE, FINITE, st.floats(0.5, 20, width=32))
def test_differences_are_the_shortest(a, b, period):
    found = float(flow.difference(jnp.float32(a), jnp.float32(b), period))
    expected = np.remainder(a - b + period / 2, period) - period / 2
    assert abs(found) <= period / 2 + 1e-3
    assert min(abs(found - expected), period - abs(found - expected)) < 1e-3


def test_components_without_a_period_stay():
    period = np.array([4, np.inf])
    z, other = jnp.array([5.0, 5.0]), jnp.array([0.5, 0.5])
    np.testing.assert_array_equal(flow.wrap(z, period, -2), [1, 5])
    np.testing.assert_array_equal(flow.difference(z, other, period), [0.5, 4.5])
    np.testing.assert_array_equal(flow.wrap(z, None), z)
    np.testing.assert_array_equal(flow.difference(z, other, None), z - other)


def test_velocity_and_score_give_each_other():
    exact = trap()
    z = draw(exact.covariance, 5)
    process, score = exact.process(), linear(exact.score)
    velocity = flow.velocity(process, score)
    np.testing.assert_allclose(jax.vmap(velocity)(z), z @ exact.velocity.T, atol=1e-6)
    again = flow.score_of(process, velocity)
    np.testing.assert_allclose(jax.vmap(again)(z), z @ exact.score.T, atol=1e-5)


def test_without_noise_the_drift_is_the_velocity_and_says_nothing_of_the_score():
    process = flow.Process(lambda z: 3 * z, diffusion=np.array([0.0, 2.0]))
    velocity = flow.velocity(process, lambda z: -z)
    np.testing.assert_allclose(velocity(jnp.ones(2)), [3, 5])
    np.testing.assert_allclose(flow.score_of(process, velocity)(jnp.ones(2)), [0, -1])
