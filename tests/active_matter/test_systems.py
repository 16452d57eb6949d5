"""Forces against finite differences, Gaussian systems against Lyapunov's equation, symmetries."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.linalg

from experiments.active_matter.gaussian import hexagonal
from experiments.active_matter.simulation import move
from experiments.active_matter.systems import (
    DEFAULTS,
    RATE,
    RING,
    TRAP,
    System,
    SystemConfig,
    make_system,
)


@pytest.fixture(params=["trap", "crystal", "ring", "cluster"])
def system(request) -> System:
    small = {"crystal": 7, "cluster": 12}
    config = DEFAULTS[request.param]
    return make_system(
        SystemConfig(config.name, config.speed, small.get(config.name, 1), config.noise)
    )


def state(system: System, rng: np.random.Generator) -> np.ndarray:
    """Particles that touch."""
    x = 2 * rng.normal(size=(system.particles, system.dimensions))
    if system.config.name == "ring":
        x = np.array([[2.1]])
    return np.stack([x, rng.normal(size=x.shape)])


def test_force_divergence_is_that_of_finite_differences(system, rng):
    with jax.enable_x64(True):
        x = jnp.asarray(state(system, rng)[0])
        force = jax.jit(system.force)
        step, found = 1e-4, np.zeros(system.particles)
        for i, a in np.ndindex(*x.shape):
            # Of fourth order: 1e-9 is beyond those of second.
            f = [float(force(x.at[i, a].add(k * step))[i, a]) for k in (-2, -1, 1, 2)]
            found[i] += (f[0] - 8 * f[1] + 8 * f[2] - f[3]) / (12 * step)
        assert np.abs(found - system.force_divergence(x)).max() < 1e-9


def test_pair_force_is_the_published_one(rng):
    with jax.enable_x64(True):
        system = make_system(SystemConfig("cluster", particles=5))
        x, side = 20 * rng.uniform(-1, 1, (5, 2)), system.config.box
        expected = -TRAP * x
        for i in range(5):
            for j in range(5):
                r = x[i] - x[j]
                r = r - side * np.rint(r / side)
                distance = np.linalg.norm(r)
                if i != j:
                    push = np.logaddexp(0, 7.5 * (2 - distance)) / 7.5
                    expected[i] += 2.5 * push * r / distance
        np.testing.assert_allclose(system.force(jnp.asarray(x)), expected, atol=1e-12)


@pytest.mark.parametrize("name", ["trap", "crystal"])
def test_gaussian_law_solves_lyapunovs_equation(name):
    config = SystemConfig(name, 0.4, 7 if name == "crystal" else 1, 0.2)
    system = make_system(config)
    exact = system.exact
    assert exact is not None
    size = 2 * system.size
    with jax.enable_x64(True):
        rest = jnp.stack([exact.center, jnp.zeros_like(exact.center)])
        slope = np.asarray(jax.jacfwd(system.drift)(rest)).reshape(size, size)
    diffusion = np.diag(np.repeat([0.2, RATE], size // 2))
    covariance = scipy.linalg.solve_continuous_lyapunov(slope, -2 * diffusion)
    np.testing.assert_allclose(exact.covariance, covariance, atol=1e-10)
    velocity = slope + diffusion @ np.linalg.inv(covariance)
    squares = np.diag(velocity @ covariance @ velocity.T) / np.diag(diffusion)
    assert exact.epr == pytest.approx(squares.sum(), rel=1e-9)
    assert exact.epr_g == pytest.approx(squares[size // 2 :].sum(), rel=1e-9)
    stiffness = -slope[: size // 2, : size // 2]
    closed = RATE * 0.4**2 / 0.2 * np.trace(np.linalg.inv(stiffness + RATE * np.eye(size // 2)))
    assert exact.epr == pytest.approx(closed, rel=1e-9)


def test_trap_has_the_closed_form():
    exact = make_system(DEFAULTS["trap"]).exact
    assert exact is not None
    numbers = exact.epr / 2, exact.epr_x / 2, exact.epr_g / 2
    assert numbers == pytest.approx((0.266667, 0.234667, 0.032), abs=1e-6)
    assert exact.covariance[0, 0] == pytest.approx(7.33333, abs=1e-5)


def test_integrator_has_the_exact_law_and_dissipation():
    system, samples = make_system(DEFAULTS["trap"]), 2048
    # Not where the law is, but a tenth of the way off, which many relaxation times forget.
    z = 1.1 * jax.vmap(system.start)(jax.random.split(jax.random.key(0), samples))
    coarse = system._replace(dt=0.05)
    z = np.asarray(jax.jit(lambda z: move(coarse, z, jax.random.key(1), 150.0))(z), float)
    x, g = z[:, 0, 0], z[:, 1, 0]
    driven = 0.2 / 0.1 * g * (0.2 * g - TRAP * x)
    expected = {(0, 0): 22 / 3, (0, 1): 4 / 3, (1, 1): 1.0}
    pairs = {(0, 0): x * x, (0, 1): x * g, (1, 1): g * g}
    for values, exact in [*((pairs[k], v) for k, v in expected.items()), (driven, 0.266667)]:
        values = values.reshape(samples, -1).mean(1)
        error = values.std() / samples**0.5
        assert abs(values.mean() - exact) < 3 * error, (values.mean(), exact, error)


def test_forces_move_with_the_system(system, rng):
    z = jnp.asarray(state(system, rng), jnp.float32)
    if system.config.name == "ring":
        z = z.at[1].set(0.7)
    # Where a symmetric copy goes is the symmetric copy of where the state goes.
    for seed in range(4):
        turn = functools.partial(system.symmetry, jax.random.key(seed))
        slope = jax.jvp(turn, (z,), (system.drift(z),))[1]
        np.testing.assert_allclose(system.drift(turn(z)), slope, atol=2e-5)


def test_no_two_particles_start_in_one_place():
    system = make_system(SystemConfig("cluster", particles=4))
    z = np.asarray(jax.jit(jax.vmap(system.start))(jax.random.split(jax.random.key(0), 2000)))
    x = z[:, 0]
    assert np.abs(x).max() <= system.config.box / 2
    away = np.linalg.norm(x[:, :, None] - x[:, None], axis=-1) + 9 * np.eye(4)
    assert away.min() > 0


def test_cluster_knows_neither_names_nor_the_box_it_is_in(rng):
    system = make_system(SystemConfig("cluster", particles=6))
    x = jnp.asarray(3 * rng.normal(size=(6, 2)), jnp.float32)
    order = rng.permutation(6)
    np.testing.assert_allclose(system.force(x[order]), system.force(x)[order], atol=1e-5)
    image = x.at[2, 0].add(system.config.box)
    moved, unmoved = (system.force(x) + TRAP * x for x in (image, x))
    np.testing.assert_allclose(moved, unmoved, atol=1e-4)


def test_ring_wraps_and_is_pushed_away_from_the_other_particle():
    system = make_system(DEFAULTS["ring"])
    places = jnp.array([1.5, RING - 1.5, RING + 1.5])[:, None, None]
    near, far, around = np.asarray(jax.vmap(system.force)(places)).ravel()
    assert near > 0 > far
    assert (far, around) == pytest.approx((-near, near), rel=1e-5)


def test_crystal_is_hexagonal():
    sites = hexagonal(7)
    distances = np.linalg.norm(sites - sites.mean(0), axis=1)
    np.testing.assert_allclose(np.sort(distances), [0, *[2.0] * 6], atol=1e-9)


BAD = [
    ({"name": "crystal", "particles": 1}, "crystal needs 2 to 400 particles, got 1"),
    ({"name": "trap", "particles": 2}, "trap has 1 particle"),
    ({"name": "cluster", "noise": -0.1}, "noise must be > 0 and finite, got -0.1"),
    ({"name": "cluster", "noise": 0.0}, "noise must be > 0"),
    ({"name": "cluster", "speed": float("nan")}, "speed must be >= 0"),
    ({"name": "cluster", "packing": 0.0}, "packing must lie in"),
    ({"name": "cluster", "particles": 2, "packing": 0.5}, "the box must be at least twice"),
    ({"name": "cluser"}, "system must be one of trap, crystal, ring, cluster, got cluser"),
]


@pytest.mark.parametrize(("values", "message"), BAD)
def test_a_system_that_cannot_be(values, message):
    with pytest.raises(ValueError, match=message):
        SystemConfig(**values)
