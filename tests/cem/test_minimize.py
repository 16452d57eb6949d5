"""Minima that are known, the rate of contraction, and that devices and batches change nothing."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType

from egattn.cem import TruncatedNormal, minimize

LOW, HIGH = jnp.array([-1.0, -1.0]), jnp.array([1.0, 1.0])
START = TruncatedNormal.over(LOW, HIGH, 1e-7)
SIZES = {"samples": 200, "elites": 20}


def cone(x, centre):
    return jnp.linalg.norm(x - centre, axis=-1)


CENTRE = (jnp.array([0.3, -0.2]),)


@pytest.fixture(scope="module")
def best():
    return minimize(cone, START, jax.random.key(0), CENTRE, rounds=20, keep_samples=True, **SIZES)


def test_finds_the_minimum(best):
    np.testing.assert_allclose(best.x, CENTRE[0], atol=1e-6)
    assert best.value == cone(best.x, CENTRE[0])
    assert best.samples.shape == (20, 200, 2)
    np.testing.assert_allclose(best.elite_values, cone(best.elite, CENTRE[0]))
    assert (jnp.diff(best.elite_values) >= 0).all()
    assert best.levels[-1] == best.elite_values[-1]


def test_contracts_on_a_cone_as_the_theory_says(best):
    """Smoothing 0.8 and an elite of a tenth: 0.2 + 0.8 * 0.2275 = 0.382 per round."""
    a = -2 * np.log(0.9)
    ratio = np.sqrt((2 - a * np.exp(-a / 2) / (1 - np.exp(-a / 2))) / 2)
    rate = (best.levels[14] / best.levels[4]) ** 0.1
    assert rate == pytest.approx(0.2 + 0.8 * ratio, abs=0.03)


def test_batched_searches_are_the_single_ones(best):
    keys = jax.random.split(jax.random.key(0), 2).at[0].set(jax.random.key(0))
    both = jax.vmap(lambda key: minimize(cone, START, key, CENTRE, rounds=20, **SIZES))(keys)
    np.testing.assert_allclose(both.levels[0], best.levels, rtol=1e-4, atol=1e-6)
    assert both.samples is None


def test_samples_split_over_devices_give_the_same(best):
    mesh = jax.make_mesh((4, 2), ("a", "b"), axis_types=(AxisType.Auto,) * 2)
    split = minimize(cone, START, jax.random.key(0), CENTRE, rounds=20, mesh=mesh, **SIZES)
    np.testing.assert_allclose(split.levels, best.levels, rtol=1e-4, atol=1e-6)
    compiled = minimize.lower(
        cone, START, jax.random.key(0), CENTRE, rounds=20, mesh=mesh, **SIZES
    ).compile()
    # Every device has an eighth of the samples.
    assert "f32[25,2]" in str(compiled.as_text())


def test_nan_is_the_worst():
    def f(x):
        return jnp.where(x[:, 0] < 0, jnp.nan, x[:, 0])

    best = minimize(f, START, jax.random.key(1), rounds=8, **SIZES)
    assert 0 <= best.x[0] < 0.05
    assert jnp.isfinite(best.levels).all()


@pytest.mark.parametrize(
    "change",
    [{"rounds": 0}, {"elites": 0}, {"elites": 201}, {"smoothing": 0.0}, {"smoothing": 1.5}],
)
def test_bad_numbers(change):
    sizes = {"rounds": 3, **SIZES} | change
    with pytest.raises(ValueError, match="expected rounds >= 1"):
        minimize(cone, START, jax.random.key(0), CENTRE, **sizes)


def test_samples_that_the_mesh_does_not_divide():
    mesh = jax.make_mesh((8,), ("a",), axis_types=(AxisType.Auto,))
    with pytest.raises(ValueError, match="divisible by 8 devices, got 201"):
        minimize(cone, START, jax.random.key(0), CENTRE, rounds=1, samples=201, elites=2, mesh=mesh)
