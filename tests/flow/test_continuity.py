"""A network that jumps beats the true score at implicit score matching, and the guard notices."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from egattn import flow

SIDE, COUNT = 8.0, 6


def to_nearest(x):
    """Of particles on a circle [N], what leads from each one's nearest neighbour to it."""
    gaps = flow.difference(x[:, None], x[None], SIDE)
    distance = jnp.abs(gaps) + jnp.where(jnp.eye(COUNT, dtype=bool), jnp.inf, 0)
    return jnp.take_along_axis(gaps, distance.argmin(1)[:, None], 1)[:, 0]


def to_all(x, reach=1.5):
    """The same from all neighbours, each with a weight that vanishes smoothly at the reach."""
    gaps = flow.difference(x[:, None], x[None], SIDE)
    weight = jnp.where(jnp.abs(gaps) < reach, (1 - (gaps / reach) ** 2) ** 3, 0)
    return jnp.sum(weight * gaps, 1)


@pytest.fixture(scope="module")
def samples():
    """An ideal gas: its density is constant, so its score is 0 and E|s|^2 is."""
    x = np.random.default_rng(0).uniform(0, SIDE, (2000, COUNT))
    return jnp.asarray(x, jnp.float32)


def trained(feature, samples):
    """The network s = weight * feature(x) that implicit score matching finds, and its bound."""

    @jax.jit
    def compute():
        f, terms = jax.vmap(lambda x: flow.divergence_terms(feature, x))(samples)
        weight = -terms.sum(1).mean() / (f**2).sum(1).mean()

        def one(x):
            return flow.implicit_score_matching(lambda x: weight * feature(x), x)

        return weight, -jax.vmap(one)(samples).sum(1)

    return compute()


def test_nearest_neighbours_give_a_bound_above_the_truth_and_are_refused(samples):
    weight, bound = trained(to_nearest, samples)
    value, error = flow.mean(bound)
    # The truth is 0.
    assert value > 5 + 10 * error
    with pytest.raises(ValueError, match=r"need a continuous network: .* got \d"):
        flow.check_continuous(
            lambda x: weight * to_nearest(x), samples, jax.random.key(0), radius=0.05
        )


def test_smooth_neighbours_give_none_and_pass(samples):
    weight, bound = trained(to_all, samples)
    value, error = flow.mean(bound)
    assert abs(value) < 4 * error
    assert 4 * error < 0.1
    missing = flow.check_continuous(
        lambda x: (1 + weight) * to_all(x), samples, jax.random.key(0), radius=0.05
    )
    assert abs(missing.value) < 1e-3


def test_what_is_missing_is_what_jumps_take_back(samples):
    """x - round(x) has the derivative 1, and no divergence on average around the circle."""
    keys = jax.random.split(jax.random.key(0), len(samples))
    measure = jax.vmap(
        lambda x, key: flow.missing_divergence(lambda x: x - jnp.rint(x), x, key, radius=0.05)
    )
    missing, found, _ = jax.jit(measure)(samples, keys)
    value, error = flow.mean(missing)
    assert abs(value + COUNT) < 3 * error < 0.5 * COUNT
    assert abs(found.mean() - COUNT) < 0.2


def normal(*shape, seed=0):
    return jnp.asarray(np.random.default_rng(seed).normal(size=shape), jnp.float32)


@pytest.mark.parametrize(
    ("activation", "passes"),
    [(jax.nn.relu, True), (lambda x: jnp.where(x > 0, x + 0.5, 0), False)],
    ids=["relu", "step"],
)
def test_kinks_pass_and_steps_do_not(activation, passes):
    first, second = normal(64, 3, seed=1), normal(3, 64, seed=2)

    def network(z):
        return second @ activation(first @ z)

    def check():
        flow.check_continuous(network, normal(500, 3), jax.random.key(0), radius=0.1)

    if passes:
        check()
    else:
        with pytest.raises(ValueError, match="need a continuous network"):
            check()


def test_jumps_along_other_components_do_no_harm():
    """As of neighbours in x when only derivatives in g are taken."""

    def field(z):
        return jnp.stack([z[0], jnp.sin(z[1]) + jnp.rint(3 * z[0])])

    z, key = normal(500, 2), jax.random.key(0)
    flow.check_continuous(field, z, key, radius=0.1, part=np.array([False, True]))
    with pytest.raises(ValueError, match="need a continuous network"):
        flow.check_continuous(field, z, key, radius=0.1)


@pytest.mark.slow
def test_constants_pass_and_nan_does_not():
    z, key = normal(20, 2), jax.random.key(0)
    missing = flow.check_continuous(lambda z: 3 + 0 * z, z, key, radius=0.1)
    assert missing.value == 0
    with pytest.raises(ValueError, match="got nan"):
        flow.check_continuous(lambda z: jnp.nan * z, z, key, radius=0.1)
