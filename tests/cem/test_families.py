"""Densities against SciPy, samples against densities, fits against weighted moments."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.stats

from egattn.cem import Exponential, GaussianMixture, TruncatedNormal, Uniform
from tests.jaxprs import equations

LOW, HIGH = np.array([-1.0, 2.0]), np.array([0.5, 6.0])
BOX = jnp.asarray(LOW, jnp.float32), jnp.asarray(HIGH, jnp.float32)
MEANS = np.array([[-0.5, 3.0], [0.2, 5.0]])
SCALES = np.array([[0.1, 0.3], [0.2, 0.5]])


def fitted_mixture() -> GaussianMixture:
    empty = GaussianMixture.over(*BOX, 2)
    weight = jnp.array([0.3, 0.7])
    return empty._replace(
        weight=weight, mean=jnp.asarray(MEANS, "float32"), scale=jnp.asarray(SCALES, "float32")
    )


def mixture_density(x: np.ndarray) -> np.ndarray:
    normal = scipy.stats.norm.pdf(x[:, None], MEANS, SCALES).prod(-1) @ [0.3, 0.7]
    inside = ((x >= LOW) & (x <= HIGH)).all(-1)
    return 0.1 * inside / np.prod(HIGH - LOW) + 0.9 * normal


def truncated_density(x: np.ndarray) -> np.ndarray:
    mean, scale = np.array([-0.9, 4.0]), np.array([0.4, 0.7])
    a, b = (LOW - mean) / scale, (HIGH - mean) / scale
    return scipy.stats.truncnorm.pdf(x, a, b, mean, scale).prod(-1)


TRUNCATED = TruncatedNormal(jnp.array([-0.9, 4.0]), jnp.array([0.4, 0.7]), *BOX)
EXPONENTIAL = Exponential(jnp.array([0.5, 2.0]))
CASES = {
    "uniform": (Uniform(*BOX), lambda x: np.full(len(x), 1 / np.prod(HIGH - LOW))),
    "truncated": (TRUNCATED, truncated_density),
    "exponential": (EXPONENTIAL, lambda x: scipy.stats.expon.pdf(x, 0, [0.5, 2.0]).prod(-1)),
    "mixture": (fitted_mixture(), mixture_density),
    "mixture before its first fit": (
        GaussianMixture.over(*BOX, 2),
        lambda x: np.full(len(x), 1 / np.prod(HIGH - LOW)),
    ),
}


@pytest.mark.parametrize("name", CASES)
class TestEach:
    def test_density(self, name, rng):
        family, density = CASES[name]
        x = np.asarray(family.sample(jax.random.key(0), 500), np.float64)
        found = np.asarray(family.log_density(jnp.asarray(x, "float32")))
        np.testing.assert_allclose(found, np.log(density(x)), rtol=2e-5, atol=2e-5)

    def test_samples_follow_the_density(self, name):
        """The mean of 1 / density over samples in the box is its volume."""
        family, density = CASES[name]
        x = np.asarray(family.sample(jax.random.key(1), 40_000), np.float64)
        # Where every density is far from 0, so that the mean settles.
        low, high = np.array([-0.8, 3.0]), np.array([0.3, 4.5])
        if name == "exponential":
            low, high = np.array([0.1, 0.2]), np.array([0.8, 3.0])
        inside = ((x >= low) & (x <= high)).all(-1)
        ratio = np.where(inside, 1 / density(x), 0)
        error = ratio.std() / np.sqrt(len(x))
        assert abs(ratio.mean() - np.prod(high - low)) < 4 * error


@pytest.mark.parametrize("family", [TRUNCATED, Uniform(*BOX)], ids=["truncated", "uniform"])
def test_nothing_lies_outside_the_box(family):
    x = np.asarray(family.sample(jax.random.key(2), 20_000))
    assert (x >= LOW).all()
    assert (x <= HIGH).all()
    assert (family.log_density(jnp.array([[-1.1, 3.0], [0.0, 7.0]])) == -jnp.inf).all()
    # No point masses on the sides, as clipping would make.
    assert (x == LOW).mean() < 1e-3


def test_weighted_moments(rng):
    x = rng.uniform(LOW, HIGH, (300, 2))
    w = rng.uniform(0, 1, 300) * (rng.uniform(0, 1, 300) < 0.5)
    with np.errstate(divide="ignore"):
        log_w = jnp.asarray(np.log(w), "float32")
    mean = w @ x / w.sum()
    scale = np.sqrt(w @ (x - mean) ** 2 / w.sum())
    fit = TRUNCATED.fitted(jax.random.key(0), jnp.asarray(x, "float32"), log_w, 0.8)
    np.testing.assert_allclose(fit.mean, 0.8 * mean + 0.2 * TRUNCATED.mean, rtol=1e-5)
    np.testing.assert_allclose(fit.scale, 0.8 * scale + 0.2 * TRUNCATED.scale, rtol=1e-5)
    np.testing.assert_array_equal(fit.low, TRUNCATED.low)
    fit = EXPONENTIAL.fitted(jax.random.key(0), jnp.asarray(x, "float32"), log_w, 1.0)
    np.testing.assert_allclose(fit.mean, mean, rtol=1e-5)


@pytest.mark.parametrize(
    "family",
    [TRUNCATED, EXPONENTIAL, pytest.param(fitted_mixture(), marks=pytest.mark.slow)],
    ids=lambda family: type(family).__name__,
)
def test_without_weights_nothing_moves(family):
    x = jnp.ones((10, 2))
    fit = family.fitted(jax.random.key(0), x, jnp.full(10, -jnp.inf), 1.0)
    for old, new in zip(family, fit, strict=True):
        np.testing.assert_array_equal(old, new)


@pytest.mark.parametrize("family", [TRUNCATED, EXPONENTIAL, fitted_mixture()])
def test_no_accelerator_rounds_the_factors_of_a_fit(family):
    program = jax.make_jaxpr(family.fitted)(
        jax.random.key(0), jnp.ones((10, 2)), jnp.zeros(10), 1.0
    )
    products = [e for e in equations(program.jaxpr) if e.primitive.name == "dot_general"]
    assert products
    for product in products:
        assert product.params["precision"] == (jax.lax.Precision.HIGHEST,) * 2


class TestMixture:
    @pytest.mark.parametrize("seed", range(5))
    def test_finds_separate_clusters_of_unequal_weight(self, seed, rng):
        centres, shares = np.array([[-0.6, 2.5], [0.1, 3.0], [0.2, 5.5]]), [600, 60, 20]
        x = np.concatenate(
            [rng.normal(c, 0.02, (n, 2)) for c, n in zip(centres, shares, strict=True)]
        )
        log_w = jnp.zeros(len(x)).at[600:].set(np.log(5.0))
        empty = GaussianMixture.over(*BOX, 3)
        fit = empty.fitted(jax.random.key(seed), jnp.asarray(x, "float32"), log_w, 1.0)
        order = np.argsort(fit.mean[:, 1])
        np.testing.assert_allclose(fit.mean[order], centres, atol=0.02)
        np.testing.assert_allclose(fit.weight[order], np.array([0.6, 0.3, 0.1]), atol=1e-5)

    def test_likelihood_ratios_are_bounded(self):
        family = fitted_mixture()
        x = Uniform(*BOX).sample(jax.random.key(3), 10_000)
        ratio = jnp.exp(Uniform(*BOX).log_density(x) - family.log_density(x))
        assert ratio.max() <= 10 * (1 + 1e-5)

    @pytest.mark.parametrize(("components", "defensive"), [(0, 0.1), (2, 1.0), (2, -0.1)])
    def test_bad_shares(self, components, defensive):
        with pytest.raises(ValueError, match="expected at least 1 component"):
            GaussianMixture.over(*BOX, components, defensive)
