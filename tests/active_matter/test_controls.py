"""Controls have the mean 0 in states that are stationary by other means, and make errors small."""

import functools

import jax
import numpy as np
import pytest

from experiments.active_matter.controls import controls, enough
from experiments.active_matter.fokker_planck import solve
from experiments.active_matter.measure import Measured
from experiments.active_matter.simulation import stationary
from experiments.active_matter.systems import DEFAULTS, SystemConfig, make_system

NAMES = (
    *("total_x", "total_g", "bound", "div_x", "div_g"),
    *("advection", "identity", "stein", "score_matching"),
)


def of_grid(count: int) -> tuple[np.ndarray, np.ndarray]:
    """Samples of the ring from its density on a grid, and their entropy production."""
    ring, rng = solve((400, 120)), np.random.default_rng(0)
    share = ring.density.ravel() / ring.density.sum()
    cells = np.unravel_index(rng.choice(share.size, count, p=share), ring.density.shape)
    within = rng.uniform(-0.5, 0.5, (2, count))
    points = [
        centres[cell] + (centres[1] - centres[0]) * shift
        for centres, cell, shift in zip((ring.x, ring.g), cells, within, strict=True)
    ]
    z = np.stack(points, 1)
    rates = (ring.fields(z).velocity ** 2).sum(1) / 0.1
    return z.astype(np.float32)[:, :, None, None], rates


def drawn(name, count: int) -> np.ndarray:
    system = make_system(SystemConfig(name, particles=1 if name == "trap" else 7))
    draw = jax.jit(functools.partial(stationary, system, samples=count))
    return controls(system, np.asarray(draw(jax.random.key(0))))


def measured(rates: np.ndarray, trajectories: int, values: np.ndarray | None) -> dict:
    samples: dict[str, np.ndarray] = dict.fromkeys(NAMES, rates)
    return Measured(samples, len(rates), trajectories, np.zeros((1, 1)), values).values()


@pytest.fixture(scope="module")
def ring():
    z, rates = of_grid(20_000)
    return controls(make_system(DEFAULTS["ring"]), z), rates


def test_of_the_ring_on_a_grid(ring):
    values, _ = ring
    error = values.std(0) / np.sqrt(len(values))
    assert values.shape == (20_000, 82)
    assert np.all(error > 0)
    assert np.abs(values.mean(0) / error).max() < 4


@pytest.mark.parametrize("name", ["trap", "crystal"])
def test_of_exact_samples(name):
    values = drawn(name, 2000)
    error = values.std(0) / np.sqrt(len(values))
    assert values.shape == (2000, 6)
    assert np.abs(values.mean(0) / error).max() < 4


def test_they_make_the_error_small(ring):
    values, rates = ring
    plain, found = measured(rates, len(rates), None), measured(rates, len(rates), values)
    assert (plain["controls"], found["controls"]) == (0, 82)
    # What tells whether snapshots are stationary is not controlled.
    assert found["epr_identity"] == plain["epr_identity"]
    error = found["epr_x_standard_error"]
    assert error < plain["epr_x_standard_error"] / 20
    assert abs(found["epr_x"] - 0.3970) < 4 * error + 5e-4
    assert plain["epr_x"] == pytest.approx(rates.mean())


@pytest.mark.parametrize(("name", "least"), [("ring", 1640), ("trap", 120), ("crystal", 120)])
def test_few_trajectories_go_without(name, least):
    system = make_system(DEFAULTS[name])
    assert enough(system, least)
    assert not enough(system, least - 1)


def test_a_periodic_box_has_none():
    assert not enough(make_system(DEFAULTS["cluster"]), 10**6)


def test_times_of_a_trajectory_are_one_sample():
    """Two trajectories, the first of which was looked at once more."""
    found = measured(np.array([1.0, 5.0, 3.0, 7.0, 5.0]), 2, None)
    assert found["epr_x"] == pytest.approx((3 + 6) / 2)
    assert found["epr_x_standard_error"] == pytest.approx(1.5)
