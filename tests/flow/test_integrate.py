"""The integrator against exact moments."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.linalg import expm, solve_discrete_lyapunov

from egattn import flow
from tests.flow.gaussian import trap

TRAP = trap()
RELAXATION = np.array([0, 0.1])


def test_a_step_is_euler_s_or_exact():
    z, h = jnp.array([1.5, -0.5]), 3.0
    mean, deviation = flow.transition(TRAP.process(RELAXATION), z, h)
    x = 1.5 + h * (-0.05 * 1.5 + 0.2 * -0.5)
    np.testing.assert_allclose(mean, [x, -0.5 * np.exp(-0.1 * h)], rtol=1e-6)
    variance = [2 * 0.1 * h, 1 - np.exp(-2 * 0.1 * h)]
    np.testing.assert_allclose(deviation, np.sqrt(variance), rtol=1e-6)
    mean, deviation = flow.transition(TRAP.process(), z, h)
    np.testing.assert_allclose(mean, [x, -0.5 * (1 - 0.1 * h)], rtol=1e-6)
    np.testing.assert_allclose(deviation, np.sqrt(2 * 0.1 * h), rtol=1e-6)


@functools.partial(jax.jit, static_argnames=("process", "steps", "every"))
def trajectories(process, z, key, **options):
    keys = jax.random.split(key, len(z))
    return jax.vmap(functools.partial(flow.simulate, process, **options))(z, keys)


def within(samples: np.ndarray, covariance: np.ndarray, sigmas: float = 3) -> None:
    """Means of products of normal numbers lie within their standard errors of the exact ones."""
    samples = np.asarray(samples, np.float64)
    found = samples.T @ samples / len(samples)
    variance = np.outer(*[np.diag(covariance)] * 2) + covariance**2
    error = np.sqrt(variance / len(samples))
    np.testing.assert_array_less(np.abs(found - covariance), sigmas * error)


def test_relaxation_from_a_point_has_the_exact_mean_and_covariance():
    """With steps so short that their own error is far below the statistical one."""
    start, time = np.array([3.0, -1.0]), 10.0
    z = jnp.broadcast_to(jnp.asarray(start, jnp.float32), (10_000, 2))
    process = TRAP.process(RELAXATION)
    frames = trajectories(process, z, jax.random.key(0), step=0.1, steps=100, every=50)
    assert frames.shape == (10_000, 2, 2)
    for frame, when in zip(np.moveaxis(frames, 1, 0), (time / 2, time), strict=True):
        propagator = expm(TRAP.matrix * when)
        exact = TRAP.covariance - propagator @ TRAP.covariance @ propagator.T
        centred = frame - propagator @ start
        np.testing.assert_array_less(
            np.abs(centred.mean(0)), 3 * np.sqrt(np.diag(exact) / len(frame))
        )
        within(centred, exact)


def heun(h: float, relaxes: bool) -> tuple[np.ndarray, np.ndarray]:
    """A step in the trap as matrices, which act on z and on the noise."""
    there = np.eye(2) + h * TRAP.matrix
    noise = np.diag([np.sqrt(2 * 0.1 * h)] * 2)
    if relaxes:
        there[1] = [0, np.exp(-0.1 * h)]
        noise[1, 1] = np.sqrt(1 - np.exp(-2 * 0.1 * h))
    both = [there + h / 2 * TRAP.matrix @ (there - np.eye(2)), noise + h / 2 * TRAP.matrix @ noise]
    if relaxes:
        both[0][1], both[1][1] = there[1], noise[1]
    return both[0], both[1]


@pytest.mark.parametrize("relaxes", [False, True])
def test_steps_are_heun_s(relaxes):
    process = TRAP.process(RELAXATION if relaxes else None)
    z, noise = np.array([1.5, -0.5]), np.array([0.3, -2.0])
    transfer, spread = heun(3.0, relaxes)
    found = flow.advance(process, jnp.float32(z), jnp.float32(noise), 3.0)
    np.testing.assert_allclose(found, transfer @ z + spread @ noise, rtol=1e-5)


def test_the_error_of_the_law_falls_with_the_square_of_the_step():
    errors = []
    for h in (2.0, 1.0, 0.5):
        move = functools.partial(flow.advance, TRAP.process(RELAXATION), step=h)
        with jax.enable_x64(True):
            transfer, spread = map(np.array, jax.jacobian(move, (0, 1))(np.zeros(2), np.zeros(2)))
        chain = solve_discrete_lyapunov(transfer, spread @ spread.T)
        errors.append(np.abs(chain - TRAP.covariance).max())
    assert errors[0] / errors[1] > 3.5
    assert errors[1] / errors[2] > 3.5


def test_long_steps_have_the_chain_s_own_covariance():
    transfer, spread = heun(24.0, True)
    chain = solve_discrete_lyapunov(transfer, spread @ spread.T)
    # Further from the process's than the errors below.
    assert abs(chain[0, 0] / TRAP.covariance[0, 0] - 1) > 0.08
    z = jnp.zeros((10_000, 2))
    process = TRAP.process(RELAXATION)
    frames = trajectories(process, z, jax.random.key(1), step=24.0, steps=50, every=50)
    within(frames[:, 0], chain)


def test_frames_that_do_not_fit_are_refused():
    process, z, key = TRAP.process(), jnp.ones(2), jax.random.key(0)
    with pytest.raises(ValueError, match="every must divide the 6 steps, got 4"):
        flow.simulate(process, z, key, step=0.1, steps=6, every=4)
    with pytest.raises(ValueError, match="every must divide the 6 steps, got 0"):
        flow.simulate(process, z, key, step=0.1, steps=6, every=0)


def test_positions_stay_in_their_box():
    process = flow.Process(
        lambda z: 1 + 0 * z,
        diffusion=0.5,
        period=np.array([4, np.inf]),
        origin=-2,
    )
    frames = trajectories(process, jnp.zeros((1, 2)), jax.random.key(0), step=0.1, steps=200)[0]
    assert np.all((frames[:, 0] >= -2) & (frames[:, 0] < 2))
    assert frames.shape == (200, 2)
    assert frames[-1, 1] > 10


def test_a_step_across_the_end_of_a_period():
    """The drift is asked where the particle is put back, and so is the corrected end."""
    process = flow.Process(lambda z: z**2, diffusion=0.0, period=np.array([2.0]), origin=-1.0)
    # To .8 + .64 / 2 = 1.12, which is -.88; then .8 + (.64 + .7744) / 4.
    found = flow.advance(process, jnp.array([0.8]), jnp.zeros(1), 0.5)
    np.testing.assert_allclose(found, 0.8 + (0.64 + 0.7744) / 4 - 2, rtol=1e-5)


def test_two_ends_have_opposite_noise():
    """For a linear process without wrapping their mean is where it goes without noise."""
    process, z = TRAP.process(RELAXATION), jnp.array([1.0, 2.0])
    move = functools.partial(flow.ends, process, duration=0.4, substeps=8)
    ends = jax.jit(move)(z, jax.random.key(0))
    step, _ = heun(0.05, True)
    expected = np.linalg.matrix_power(step, 8) @ [1, 2]
    np.testing.assert_allclose(ends.mean(0), expected, rtol=1e-5)
    assert np.all(np.abs(ends[0] - ends[1]) > 1e-3)
