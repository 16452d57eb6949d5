"""Entropy production of linear processes, whose every mean is known, and its lower bound."""

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


def evaluate(process, velocity, samples, **options):
    one = jax.vmap(lambda z: flow.production(process, velocity, z, **options))
    return jax.jit(one)(samples)


def exact_flow(exact):
    """Process, exact velocity, and points that have the exact moments."""
    process = exact.process()
    return process, flow.velocity(process, linear(exact.score)), points(exact.covariance)


@pytest.fixture(scope="module", params=SYSTEMS.values(), ids=list(SYSTEMS))
def case(request, double):
    """A system, and the production of its exact velocity."""
    return request.param, evaluate(*exact_flow(request.param))


def test_trap_has_the_closed_form():
    production = evaluate(*exact_flow(SYSTEMS["trap"]))
    total, medium, system = (x.mean(0) for x in production)
    np.testing.assert_allclose(total, [0.23466666667, 0.032], rtol=1e-9)
    np.testing.assert_allclose(system, [-0.032, 0.032], rtol=1e-9)
    np.testing.assert_allclose(medium.sum(), RATE * SPEED**2 / (NOISE * (0.05 + RATE)), rtol=1e-9)


def test_components_are_the_exact_ones(case):
    exact, production = case
    np.testing.assert_allclose(production.total.mean(0), exact.production, rtol=1e-9)
    np.testing.assert_allclose(production.system.mean(0), np.diag(exact.velocity), rtol=1e-9)
    heat = np.diag(exact.velocity @ exact.covariance @ exact.matrix.T) / exact.diffusion
    np.testing.assert_allclose(production.medium.mean(0), heat, rtol=1e-9, atol=1e-12)


def test_crystals_have_the_closed_form(case):
    exact, production = case
    n = len(exact.matrix) // 2
    stiffness = -exact.matrix[:n, :n]
    inverse = np.linalg.inv(stiffness + RATE * np.eye(n))
    sigma = RATE * SPEED**2 / NOISE * np.trace(inverse)
    np.testing.assert_allclose(production.total.sum(1).mean(), sigma, rtol=1e-9)


def test_residual_vanishes_at_each_point_and_on_average_in_each_component(case):
    _, production = case
    np.testing.assert_allclose(production.residual.sum(1), 0, atol=1e-9)
    np.testing.assert_allclose(production.residual.mean(0), 0, atol=1e-9)
    np.testing.assert_allclose(production.system.sum(1), 0, atol=1e-9)


def test_a_score_too_large_by_a_tenth_leaves_a_residual():
    exact = SYSTEMS["trap"]
    process = exact.process()
    velocity = flow.velocity(process, linear(1.1 * exact.score))
    samples = draw(exact.covariance, 20_000)
    residual = evaluate(process, velocity, samples).residual.sum(1)
    # For normal z the variance of z.A z is 2 tr(A C A C) with A symmetric.
    wrong = exact.matrix - 1.1 * np.diag(exact.diffusion) @ exact.score
    form = wrong.T @ (1.1 * exact.score)
    form = (form + form.T) / 2 @ exact.covariance
    np.testing.assert_allclose(residual.std(), np.sqrt(2 * np.trace(form @ form)), rtol=0.05)
    assert abs(float(residual.std()) - 0.021) < 0.002


def test_any_velocity_bounds_each_component_from_below(case):
    exact, production = case
    np.testing.assert_allclose(production.bound.mean(0), exact.production, rtol=1e-9)
    process, _, samples = exact_flow(exact)
    rng = np.random.default_rng(1)
    error = 0.1 * rng.normal(size=exact.matrix.shape)
    bound = evaluate(process, linear(exact.velocity + error), samples).bound.mean(0)
    loss = np.diag(error @ exact.covariance @ error.T) / exact.diffusion
    np.testing.assert_allclose(bound, exact.production - loss, rtol=1e-9)


def test_the_bound_is_implicit_score_matching_with_weights(case):
    """-E[D (s^2 + 2 div s)] plus what the drift alone gives, of the score that belongs to v."""
    exact, _ = case
    process, _, samples = exact_flow(exact)
    score = 0.9 * exact.score

    @jax.jit
    @jax.vmap
    def both(z):
        bound = flow.production(process, flow.velocity(process, linear(score)), z).bound
        loss = flow.implicit_score_matching(linear(score), z)
        b, terms = flow.divergence_terms(process.drift, z)
        return bound, b**2 / process.diffusion + 2 * terms - process.diffusion * loss

    np.testing.assert_allclose(*both(samples), atol=1e-9)


@pytest.mark.parametrize("side", [0, 1])
def test_parts_are_parts(side):
    process, velocity, samples = exact_flow(SYSTEMS["random springs"])
    part = np.arange(12) // 6 == side
    whole = evaluate(process, velocity, samples)
    some = evaluate(process, velocity, samples, part=part)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a * part, b, atol=1e-12), whole, some)
    summary = flow.summarise(whole, part=part)
    np.testing.assert_allclose(summary.total.value, whole.total[:, part].sum(1).mean(), rtol=1e-9)


def test_without_noise_in_positions_only_propulsions_count():
    exact = active(springs(6, seed=0), RATE, 0.0, SPEED)
    process, velocity, samples = exact_flow(exact)
    production = evaluate(process, velocity, samples)
    for terms in (*production, production.bound, production.residual):
        assert np.all(terms[:, :6] == 0)
    np.testing.assert_allclose(production.total.mean(0), exact.production, rtol=1e-6)
    np.testing.assert_allclose(production.system.sum(1).mean(), np.trace(springs(6, 0)), rtol=1e-6)


def test_free_particles_on_a_circle_dissipate_their_drag():
    """rho is uniform in x and normal in g: s_x = 0, s_g = -g."""
    process = flow.Process(
        lambda z: jnp.stack([SPEED * z[1], -RATE * z[1]]),
        diffusion=np.array([[NOISE], [RATE]]),
        period=np.array([[8.0], [np.inf]]),
    )
    velocity = flow.velocity(process, lambda z: jnp.stack([0 * z[0], -z[1]]))
    g = points(np.eye(3))
    production = evaluate(process, velocity, jnp.stack([jnp.ones_like(g), g], 1))
    expected = [[SPEED**2 / NOISE] * 3, [0] * 3]
    np.testing.assert_allclose(production.total.mean(0), expected, atol=1e-12)
    np.testing.assert_allclose(production.residual, 0, atol=1e-12)


def test_summary_has_means_errors_and_the_deviation():
    exact = SYSTEMS["trap"]
    process = exact.process()
    velocity = flow.velocity(process, linear(1.1 * exact.score))
    production = evaluate(process, velocity, draw(exact.covariance, 1000))
    summary = flow.summarise(production, blocks=10)
    for name in ("total", "bound", "medium", "system", "residual"):
        sums = np.asarray(getattr(production, name)).sum(1)
        value, error = getattr(summary, name)
        np.testing.assert_allclose(value, sums.mean())
        blocks = sums.reshape(10, 100).mean(1)
        np.testing.assert_allclose(error, blocks.std(ddof=1) / 10**0.5, atol=1e-12)
    residual = np.asarray(production.system + production.medium - production.total).sum(1)
    np.testing.assert_allclose(summary.residual_deviation, residual.std())


def test_penalties_have_the_means_inside_the_squares():
    rng = np.random.default_rng(0)
    divergence, advection = rng.normal(1, 2, 50), rng.normal(-0.5, 1, 50)
    found = flow.penalties(jnp.asarray(divergence), jnp.asarray(advection))
    np.testing.assert_allclose(found.divergence, divergence.mean() ** 2)
    np.testing.assert_allclose(found.advection, advection.mean() ** 2)
    np.testing.assert_allclose(found.residual, np.mean((divergence + advection) ** 2))
    # Leaving out the divergence, as published code does at times, is another penalty.
    assert abs(found.residual - np.mean(advection**2)) > 1
