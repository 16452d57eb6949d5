"""Symmetries of the networks, their derivatives, and what a transformer starts from."""

import dataclasses
import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from egattn.flow import check_continuous, divergence_terms
from experiments.active_matter.config import PRESETS
from experiments.active_matter.features import flow_features
from experiments.active_matter.forces import fade
from experiments.active_matter.networks import Network, field, linear_answer
from experiments.active_matter.systems import make_system, mirror

SMALL = {"particles": 5, "width": 8, "layers": 1, "heads": 2}


def built(name: str, **values):
    config = dataclasses.replace(PRESETS[name], **values)
    system = make_system(config.of_system())
    network = Network(system, config)
    shape = (2, system.particles, system.dimensions)
    params = jax.jit(network.init)(jax.random.key(0), jnp.ones(shape))["params"]
    # No weight is 0: outputs begin with 0 otherwise.
    leaves, tree = jax.tree.flatten(params)
    keys = jax.random.split(jax.random.key(1), len(leaves))
    leaves = [x + 0.1 * jax.random.normal(k, x.shape) for x, k in zip(leaves, keys, strict=True)]
    return system, network, jax.tree.unflatten(tree, leaves)


@pytest.fixture(scope="module")
def cluster():
    system, network, params = built("cluster", **SMALL)
    return system, network, jax.jit(field(network, params)), params


@pytest.fixture(scope="module")
def state():
    x, g = np.random.default_rng(3).normal(size=(2, 5, 2))
    return jnp.asarray(np.stack([2 * x, g]), jnp.float32)


def test_renamed_particles_are_the_same_ones(cluster, state):
    _, _, network, _ = cluster
    order = np.array([3, 1, 4, 0, 2])
    np.testing.assert_allclose(network(state[:, order]), network(state)[:, order], atol=1e-5)


def test_attention_entropy_is_between_none_and_all(cluster, state):
    _, network, _, params = cluster
    _, entropy = jax.jit(network.apply)({"params": params}, state)
    assert entropy.shape == (2, 2, 5)
    assert (entropy > 0).all()
    assert (entropy <= np.log(5) + 1e-6).all()


@pytest.mark.slow
def test_divergence_is_that_of_finite_differences(cluster, state):
    _, _, network, _ = cluster
    _, terms = jax.jit(lambda z: divergence_terms(network, z))(state)
    step, found = 2e-3, np.zeros(state.shape)
    for index in np.ndindex(*state.shape):
        ahead, back = (network(state.at[index].add(s * step))[index] for s in (1, -1))
        found[index] = (ahead - back) / (2 * step)
    np.testing.assert_allclose(terms, found, atol=1e-3 * np.abs(found).max())


@pytest.mark.slow
def test_transformer_does_not_jump(cluster, state):
    _, _, network, _ = cluster
    samples = state + 0.3 * jax.random.normal(jax.random.key(2), (32, *state.shape))
    check_continuous(network, samples, jax.random.key(3), radius=0.02)


def test_flow_features_of_a_linear_force_are_exponentials():
    config = dataclasses.replace(PRESETS["crystal"], particles=3)
    system = make_system(config.of_system())
    exact = system.exact
    assert exact is not None
    rng = np.random.default_rng(0)
    away, g = rng.normal(size=(2, 3, 2))
    hessian = -np.asarray(jax.jacfwd(system.force)(jnp.zeros((3, 2)))).reshape(6, 6)
    x = jnp.asarray(exact.center + away, jnp.float32)
    z = jnp.stack([x, jnp.asarray(g, jnp.float32)])
    found = np.asarray(jax.jit(lambda z: flow_features(system, z))(z))
    # As the Euler steps have it: their products, in place of the exponential.
    decay = np.eye(6)
    for leg, (count, length) in enumerate(((1, 0.1), (2, 0.1), (6, 0.7 / 6), (16, 0.125))):
        decay = np.linalg.matrix_power(np.eye(6) - length * hessian, count) @ decay
        moved = ((decay - np.eye(6)) @ away.ravel()).reshape(3, 2)
        np.testing.assert_allclose(found[:, 2 * leg], moved, atol=1e-5)
        pulled = (decay @ g.ravel()).reshape(3, 2)
        np.testing.assert_allclose(found[:, 2 * leg + 1], pulled, atol=1e-5)


def test_flow_features_of_a_cluster_are_those_of_its_flows():
    system = make_system(dataclasses.replace(PRESETS["cluster"], particles=3).of_system())
    rng = np.random.default_rng(0)
    x, g = np.array([[0, 0], [1.8, 0.3], [0.5, 1.9]]), rng.normal(size=(3, 2))

    def moved(x, speed, strength, stiffness, time):
        """Where the flow leads to; the legs' steps as they are, in float64."""
        t = 0.0
        for count, length in ((1, 0.1), (2, 0.1), (6, 0.7 / 6), (16, 0.125)):
            for _ in range(count):
                delta = x[:, None] - x
                r = np.linalg.norm(delta, axis=-1) + np.eye(3)
                push = strength * np.logaddexp(0, stiffness * (2 - r)) / (stiffness * r)
                force = np.einsum("ij,ijd->id", push, delta) - 0.05 * x
                x = x + length * (force + speed * np.exp(-0.1 * t) * g)
                t += length
            if np.isclose(t, time):
                return x
        raise AssertionError

    z = jnp.asarray(np.stack([x, g]), jnp.float32)
    found = np.asarray(jax.jit(lambda z: flow_features(system, z))(z)).swapaxes(0, 1)
    pushes, times = ((2.5, 7.5), (2.5, 3.0), (1.0, 3.0)), (0.1, 0.3, 1.0, 3.0)
    expected = []
    for (strength, stiffness), time in itertools.product(pushes, times):
        place = functools.partial(
            moved, speed=0.0, strength=strength, stiffness=stiffness, time=time
        )
        expected.append(place(x) - x)
        slopes = np.zeros((3, 2))
        for index in np.ndindex(3, 2):
            step = np.zeros((3, 2))
            step[index] = 1e-5
            slopes[index] = np.sum(g * (place(x + step) - place(x - step))) / 2e-5
        expected.append(slopes)
    driven = itertools.product((0.2, -0.2), times)
    expected += [moved(x, speed, 2.5, 7.5, time) - x for speed, time in driven]
    np.testing.assert_allclose(found, expected, atol=2e-4)


def test_flows_can_be_left_out():
    _, _, params = built("crystal", **SMALL)
    _, _, plain = built("crystal", **SMALL, flow_features=False)
    counts = [params["VmapTransformer_0"]["linear"].shape for params in (params, plain)]
    assert counts == [(2, 19), (2, 3)]


def test_one_state_makes_no_linear_start():
    system, network, params = built("crystal", **SMALL)
    z = jax.vmap(system.start)(jax.random.split(jax.random.key(5), 2))
    answers = [linear_answer(network, params, z[:n], jax.random.key(6)) for n in (1, 2)]
    before, one, two = (p["VmapTransformer_0"]["linear"] for p in (params, *answers))
    np.testing.assert_array_equal(one, before)
    assert np.isfinite(two).all()
    assert (np.asarray(two) != before).any()


def test_linear_start_is_near_the_exact_score_of_a_crystal():
    config = dataclasses.replace(PRESETS["crystal"], **SMALL)
    system = make_system(config.of_system())
    network, exact = Network(system, config), system.exact
    assert exact is not None
    z = jax.vmap(exact.sample)(jax.random.split(jax.random.key(5), 2048))
    params = jax.jit(network.init)(jax.random.key(0), z[0])["params"]
    params = jax.jit(lambda p, z: linear_answer(network, p, z, jax.random.key(6)))(params, z)
    values = np.asarray(jax.jit(jax.vmap(field(network, params)))(z), float)
    process = system.process
    target = jax.vmap(lambda z: exact.score(z) - process.drift(z) / process.diffusion)(z)
    for got, wanted in zip(values.swapaxes(0, 1), np.asarray(target).swapaxes(0, 1), strict=True):
        assert np.mean((got - wanted) ** 2) < 0.05 * np.mean(wanted**2)


@pytest.mark.parametrize("name", ["trap", "ring"])
def test_networks_of_one_particle_are_odd(name):
    system, network, params = built(name)
    values = field(network, params)
    z = jnp.asarray(
        np.random.default_rng(1).normal(size=(2, 1, system.dimensions)) + 3, jnp.float32
    )
    image = mirror(z) if name == "ring" else -z
    np.testing.assert_allclose(values(image), -values(z), atol=1e-6)
    assert jnp.abs(values(z)).min() > 0


def test_fade_is_flat_at_both_ends():
    r = jnp.array([2.9, 3.0, 4.0, 4.1])
    np.testing.assert_allclose(fade(r, 3.0, 4.0), [1, 1, 0, 0], atol=1e-6)
    for order in (jax.grad, lambda f: jax.grad(jax.grad(f))):
        slope = jax.vmap(order(lambda r: fade(r, 3.0, 4.0)))(jnp.array([3.001, 3.999]))
        np.testing.assert_allclose(slope, 0, atol=0.1)
