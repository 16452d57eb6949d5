"""Divergences against finite differences in NumPy, and against each other."""

import jax
import jax.numpy as jnp
import jaxtyping
import numpy as np
import pytest

from egattn import flow

SHAPE = (2, 3)
RNG = np.random.default_rng(0)
MIX, SHIFT = RNG.normal(size=(6, 6)), RNG.normal(size=6)
PARTS = {
    "all": None,
    "one axis": np.array([[True], [False]]),
    "some": np.array([[True, False, True], [False, False, True]]),
    "none": np.zeros(SHAPE, bool),
}
METHODS = ("forward", "reverse")


def field(z):
    x = z.reshape(-1)
    return (jnp.tanh(MIX @ x + SHIFT) * jnp.cos(x[::-1]) + x**3).reshape(z.shape)


def differences(z: np.ndarray, step: float = 1e-5) -> np.ndarray:
    """d f_i / d z_i of the same field, to about 1e-10."""

    def f(x):
        return np.tanh(MIX @ x + SHIFT) * np.cos(x[::-1]) + x**3

    x = z.reshape(-1)
    ends = [(f(x + step * e), f(x - step * e)) for e in np.eye(6)]
    return np.array([(b - a)[i] / (2 * step) for i, (b, a) in enumerate(ends)]).reshape(z.shape)


@pytest.fixture(scope="module")
def z(double):
    return jnp.asarray(np.random.default_rng(1).normal(size=SHAPE))


@pytest.fixture(scope="module")
def exact(z):
    """Values, terms and sums of each exact method and part."""

    @jax.jit
    def compute(z):
        pairs = {(m, p): {"method": m, "part": PARTS[p]} for m in METHODS for p in PARTS}
        return {
            case: (
                *flow.divergence_terms(field, z, **options),
                flow.divergence(field, z, **options),
            )
            for case, options in pairs.items()
        }

    return compute(z)


@pytest.mark.parametrize("name", PARTS)
@pytest.mark.parametrize("method", METHODS)
def test_exact_terms_are_finite_differences(method, name, z, exact):
    value, terms, (again, total) = exact[method, name]
    expected = differences(np.asarray(z)) * (1 if PARTS[name] is None else PARTS[name])
    np.testing.assert_allclose(terms, expected, atol=1e-9)
    np.testing.assert_allclose(total, expected.sum(), atol=1e-9)
    np.testing.assert_allclose([value, again], [field(z)] * 2, rtol=1e-12)


def test_probes_give_the_terms_on_average(z, exact):
    @jax.jit
    @jax.vmap
    def estimate(key):
        options = {"method": "hutchinson", "key": key, "probes": 2}
        return {
            name: flow.divergence_terms(field, z, part=part, **options)[1]
            for name, part in PARTS.items()
        }

    for name, samples in estimate(jax.random.split(jax.random.key(0), 4000)).items():
        samples, terms = np.asarray(samples), np.asarray(exact["forward", name][1])
        error = samples.std(0) / np.sqrt(len(samples))
        assert np.all(np.abs(samples.mean(0) - terms) <= 4 * error), name
        assert np.all((terms != 0) == (error > 0)), name


def test_probes_see_a_diagonal_exactly():
    z, options = jnp.arange(4.0), {"method": "hutchinson", "probes": 3}
    _, terms = flow.divergence_terms(lambda z: z * z, z, key=jax.random.key(0), **options)
    np.testing.assert_allclose(terms, 2 * z)


def test_training_differentiates_both_exact_methods(z):
    @jax.jit
    def slopes(z):
        def total(z, method):
            return flow.divergence(field, z, method=method)[1]

        return [jax.grad(total)(z, method) for method in METHODS]

    np.testing.assert_allclose(*slopes(z), atol=1e-9)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"method": "foward"}, "unknown divergence method 'foward'; did you mean 'forward'"),
        ({"method": "hutchinson"}, "expected a key for hutchinson, got none"),
        (
            {"method": "hutchinson", "key": jax.random.key(0), "probes": 0},
            "expected at least 1 probe, got 0",
        ),
    ],
)
def test_bad_options_are_refused(options, message, monkeypatch):
    # Users have no type checker at run time, which would be first to notice.
    monkeypatch.setattr(jaxtyping.config, "jaxtyping_disable", True)
    with pytest.raises(ValueError, match=message):
        flow.divergence(field, jnp.ones(SHAPE), **options)
