"""Probabilities that are known exactly, and what is said when an estimate is bad."""

import math
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType

from egattn.cem import Exponential, GaussianMixture, Uniform, rare_event

PAGE = Path(__file__).parents[2] / "docs" / "own_rare_event.md"
NETWORK = Exponential(jnp.array([0.25, 0.4, 0.1, 0.3, 0.2]))
# By integrating piecewise exactly over x3.
EXACT = 1.342459749770676e-05


def shortest_path(x):
    """Minus the length of the shortest path through a bridge network of five edges."""
    a, b, c, d, e = x.T
    return -jnp.stack([a + d, a + c + e, b + e, b + c + d]).min(0)


@pytest.fixture(scope="module")
def events():
    return [
        rare_event(
            *(shortest_path, NETWORK, NETWORK, -2.0, jax.random.key(seed)),
            samples=1000,
            draws=100_000,
        )
        for seed in range(20)
    ]


class TestNetwork:
    def test_each_within_four_standard_errors(self, events):
        for event in events:
            assert event.reached
            assert len(event.levels) <= 7
            assert abs(event.probability - EXACT) <= 4 * event.standard_error
            assert 0.02 < event.relative_error < 0.08

    def test_mean_within_three_percent(self, events):
        mean = np.mean([event.probability for event in events])
        assert mean == pytest.approx(EXACT, rel=0.03)

    def test_errors_are_as_large_as_reported(self, events):
        z = [(event.probability - EXACT) / event.standard_error for event in events]
        assert 0.5 < np.sqrt(np.mean(np.square(z))) < 1.6

    def test_counts(self, events):
        event = events[0]
        assert event.draws == 100_000
        assert event.evaluations == 100_000 + 1000 * len(event.levels)
        naive = (1 - event.probability) / event.probability / event.relative_error**2
        assert event.naive_draws == pytest.approx(naive)

    def test_samples_split_over_devices_give_the_same(self, events):
        mesh = jax.make_mesh((8,), ("samples",), axis_types=(AxisType.Auto,))
        event = rare_event(
            *(shortest_path, NETWORK, NETWORK, -2.0, jax.random.key(0)),
            samples=1000,
            draws=100_000,
            mesh=mesh,
        )
        assert event.probability == pytest.approx(events[0].probability, rel=1e-3)


def test_the_page_is_right():
    """The example of docs/own_rare_event.md, executed, against the exact tail of a gamma."""
    (code,) = PAGE.read_text(encoding="utf-8").split("```python\n")[1:]
    text = code.split("```")[0]
    assert text.count("\n") <= 20
    names: dict = {}
    exec(compile(text, str(PAGE), "exec"), names)
    event, exact = names["event"], math.exp(-30) * (1 + 30 + 450)
    assert exact < 1e-10
    assert event.reached
    assert abs(event.probability - exact) <= 4 * event.standard_error
    assert event.relative_error < 0.05


def two_discs(x):
    return jnp.minimum(jnp.hypot(x[:, 0] - 1, x[:, 1]), 2 * jnp.hypot(x[:, 0] + 1, x[:, 1] - 0.5))


@pytest.mark.slow
def test_a_mixture_finds_both_regions():
    box = Uniform(jnp.array([-2.0, -2.0]), jnp.array([2.0, 2.0]))
    eps = 1e-3
    exact = math.pi * eps**2 * 1.25 / 16
    for seed in range(4):
        event = rare_event(
            *(two_discs, box, GaussianMixture.over(*box, 2), eps, jax.random.key(seed)),
            samples=2000,
            draws=20_000,
        )
        assert event.reached
        assert abs(event.probability - exact) <= 4 * event.standard_error
        assert event.relative_error < 0.02


def test_a_level_that_is_not_reached_is_said():
    event = rare_event(
        *(shortest_path, NETWORK, NETWORK, -50.0, jax.random.key(0)),
        samples=1000,
        draws=100_000,
        max_levels=1,
    )
    assert not event.reached
    assert len(event.levels) == 1
    assert event.probability == 0
    assert event.relative_error == event.naive_draws == math.inf


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"samples": 0}, "positive samples"),
        ({"quantile": 1.0}, "quantile within"),
        ({"smoothing": 0.0}, "smoothing within"),
        ({"level": math.nan}, "finite level, got nan"),
    ],
)
def test_bad_numbers(change, message):
    options = {"level": -2.0, "samples": 100, "draws": 100, "key": jax.random.key(0)} | change
    with pytest.raises(ValueError, match=message):
        rare_event(shortest_path, NETWORK, NETWORK, **options)
