"""The identities hold for exact scores, and give entropy production without any."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from egattn import flow
from tests.flow.gaussian import active, crystal, draw, linear, points, springs, trap

pytestmark = pytest.mark.usefixtures("double")
RATE, NOISE, SPEED = 0.1, 0.1, 0.2
SYSTEMS = {
    "trap": trap(),
    "random springs": active(springs(6, seed=0), RATE, NOISE, SPEED),
    "hexagonal crystal": active(crystal(), RATE, NOISE, SPEED),
}


@pytest.fixture(scope="module", params=SYSTEMS.values(), ids=list(SYSTEMS))
def exact(request):
    return request.param


def halves(exact):
    """Which components are positions, and how many there are."""
    n = len(exact.matrix) // 2
    return np.arange(2 * n) < n, n


def means(compute, samples):
    return jax.tree.map(lambda x: np.asarray(x).mean(0), jax.jit(jax.vmap(compute))(samples))


def test_work_of_the_propulsion_is_the_production_of_each_particle(exact):
    x, n = halves(exact)
    process = exact.process()

    def push(z):
        return jnp.concatenate([SPEED * z[n:], jnp.zeros(n)])

    def compute(z):
        return flow.dissipation(process, z, driving=push), flow.dissipation(
            process, z, driving=push, part=x
        )

    found, positions = means(compute, points(exact.covariance))
    inverse = np.linalg.inv(RATE * np.eye(n) - exact.matrix[:n, :n])
    np.testing.assert_allclose(found[:n], RATE * SPEED**2 / NOISE * np.diag(inverse), rtol=1e-9)
    np.testing.assert_array_equal(found[n:], 0)
    np.testing.assert_allclose(positions, found)


def test_so_is_the_whole_drift_s_with_its_divergence(exact):
    process = exact.process()
    found = means(lambda z: flow.dissipation(process, z), points(exact.covariance))
    np.testing.assert_allclose(found.sum(), exact.production.sum(), rtol=1e-9)


def test_dissipation_leaves_out_what_has_no_noise():
    exact = active(springs(6, seed=0), RATE, 0.0, SPEED)
    process = exact.process()
    found = means(lambda z: flow.dissipation(process, z), points(exact.covariance))
    np.testing.assert_array_equal(found[:6], 0)
    # b_g^2 / gamma = gamma g^2, less gamma.
    np.testing.assert_allclose(found[6:], 0, atol=1e-12)


def test_without_noise_the_flow_expands_in_g_as_forces_contract_in_x():
    stiffness = springs(6, seed=0)
    exact = active(stiffness, RATE, 0.0, SPEED)
    x, _ = halves(exact)
    process = exact.process()
    z = points(exact.covariance)[0]
    _, forces = flow.divergence(process.drift, z, part=x)
    _, spread = flow.divergence(flow.velocity(process, linear(exact.score)), z, part=~x)
    np.testing.assert_allclose(forces, -np.trace(stiffness), rtol=1e-9)
    np.testing.assert_allclose(spread, np.trace(stiffness), rtol=1e-6)


def test_stein_s_identity_holds_in_each_component(exact):
    x, n = halves(exact)
    process, score = exact.process(), linear(exact.score)
    velocity = flow.velocity(process, score)

    def force(z):
        return jnp.concatenate([exact.matrix[:n, :n] @ z[:n], jnp.zeros(n)])

    def crossed(z):
        return jnp.concatenate([z[n:], z[:n]])

    fields = {"z": lambda z: z, "s": score, "v": velocity, "F": force, "g and x": crossed}

    def compute(z):
        return {name: flow.stein(score, field, z) for name, field in fields.items()}

    found = means(compute, points(exact.covariance))
    for product, divergence in found.values():
        np.testing.assert_allclose(product, -divergence, atol=1e-9)
    np.testing.assert_allclose(found["z"].product, -1, rtol=1e-9)
    np.testing.assert_allclose(found["F"].product.sum(), -np.trace(exact.matrix[:n, :n]), rtol=1e-9)
    np.testing.assert_allclose(found["s"].product, -np.diag(exact.score), rtol=1e-9)
    # E[div_g v_g] = E|v_g|^2 / gamma = -E[div_x v_x], and E|s_g|^2 = n + E[div_g v_g] / gamma.
    spread = found["v"].divergence[~x].sum()
    np.testing.assert_allclose(spread, exact.production[~x].sum(), rtol=1e-9)
    np.testing.assert_allclose(spread, -found["v"].divergence[x].sum(), rtol=1e-9)
    np.testing.assert_allclose(found["s"].product[~x].sum(), n + spread / RATE, rtol=1e-9)


def test_stein_of_a_part(exact):
    x, _ = halves(exact)
    score = linear(exact.score)
    whole, part = means(
        lambda z: (flow.stein(score, score, z), flow.stein(score, score, z, part=x)),
        points(exact.covariance),
    )
    for a, b in zip(whole, part, strict=True):
        np.testing.assert_allclose(a * x, b, atol=1e-12)


def test_a_stationary_flow_carries_nothing_on_average(exact):
    _, n = halves(exact)
    velocity = linear(exact.velocity)
    functions = {
        "g^2 / 2": lambda z: jnp.sum(z[n:] ** 2) / 2,
        "x.g": lambda z: jnp.dot(z[:n], z[n:]),
    }

    def compute(z):
        return {name: flow.transport(velocity, f, z) for name, f in functions.items()}

    found = means(compute, points(exact.covariance))
    for terms in found.values():
        np.testing.assert_allclose(terms.sum(), 0, atol=1e-12)
    np.testing.assert_allclose(found["g^2 / 2"][:n], 0, atol=1e-12)


@pytest.mark.parametrize(
    ("sigma", "expected", "clean"),
    [(0.0, 2e4, 2e4), (1e-3, 1175.56, 69.10), (1e-2, 12.479, 0.0078)],
)
def test_smoothed_score_of_a_stiff_mode_on_noised_and_clean_samples(sigma, expected, clean):
    """Two modes of stiffness 1 without noise in x: only noised samples satisfy the identities."""
    rate, speed = 1e-4, 0.025
    exact = active(np.eye(1), rate, 0.0, speed)
    smoothed = exact.covariance + sigma**2 * np.eye(2)
    score = linear(-np.linalg.inv(smoothed))
    process, g = exact.process(), np.array([False, True])
    velocity = flow.velocity(process, score)

    def compute(z):
        return flow.production(process, velocity, z, part=g), flow.stein(score, lambda z: z, z)

    noised, stein = means(compute, points(smoothed))
    np.testing.assert_allclose(2 * noised.system[1] / rate, expected, rtol=1e-4)
    np.testing.assert_allclose(
        noised.total[1] / rate, noised.system[1] / rate + sigma**2, rtol=1e-6
    )
    np.testing.assert_allclose(stein.product, -1, rtol=1e-6)
    total = 2 * means(compute, points(exact.covariance))[0].total[1] / rate
    np.testing.assert_allclose(total, clean, rtol=1e-2)


def test_ratio_of_both_sides_is_one_within_its_error():
    exact = trap()
    score = linear(exact.score)
    samples = draw(exact.covariance, 5000)
    product, divergence = jax.jit(jax.vmap(lambda z: flow.stein(score, score, z)))(samples)
    value, error = flow.ratio(product.sum(1), -divergence.sum(1))
    assert abs(value - 1) < 3 * error < 0.1
