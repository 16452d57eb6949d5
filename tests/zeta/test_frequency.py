"""The law of large numbers: frequencies against exact areas, and how their errors fall."""

import math

import pytest
from scipy.stats import binomtest

from experiments.zeta.box import Box
from experiments.zeta.frequency import interval, near_line, run
from tests.zeta.truth import AREAS, ZEROS

BOX = Box(0.0, 1.0, 10.0, 30.0)


@pytest.fixture(scope="module")
def million():
    import jax

    with jax.enable_x64(True):
        return run(BOX, 0.05, (1_000_000,), 2)


def test_frequency(million):
    """L1."""
    assert million.exact == pytest.approx(AREAS[0.05], rel=3e-8)
    assert abs(million.frequency[0] - AREAS[0.05]) <= 1.35e-4
    assert million.slope is None


def test_hits_beside_the_line(million):
    """L2: most zeros on the line are hit beside it."""
    assert million.near_line == pytest.approx(0.59895, abs=0.045)
    assert million.near_line_exact == pytest.approx(0.59895, abs=1e-5)


@pytest.mark.parametrize(("share", "expected"), [(0.25, 0.311690), (1.0, 0.939953)])
def test_semicircles(share, expected):
    assert near_line(BOX, ZEROS[:3], share) == pytest.approx(expected, abs=2e-6)


@pytest.mark.slow
def test_errors_fall_like_one_over_the_root():
    """L3."""
    result = run(BOX, 0.2, (1000, 10_000, 100_000), 32)
    assert result.slope == pytest.approx(-0.5, abs=0.1)
    for n, rms in zip(result.samples, result.rms_error, strict=True):
        p = result.exact
        assert rms == pytest.approx(math.sqrt(p * (1 - p) / n), rel=0.4)


@pytest.mark.parametrize(("hits", "samples"), [(0, 100), (3, 50), (9, 1000)])
def test_interval_of_few_hits(hits, samples):
    expected = binomtest(hits, samples).proportion_ci(method="exact")
    assert interval(hits, samples) == pytest.approx((expected.low, expected.high))


def test_interval_of_many_hits():
    low, high = interval(400, 10_000)
    assert (low + high) / 2 == pytest.approx(0.04)
    assert high - low == pytest.approx(2 * 1.959964 * math.sqrt(0.04 * 0.96 / 10_000))


@pytest.mark.parametrize(
    ("eps", "samples", "runs"), [(0.0, (100,), 2), (0.1, (), 2), (0.1, (0,), 2), (0.1, (100,), 1)]
)
def test_bad_numbers(eps, samples, runs):
    with pytest.raises(ValueError, match=r"expected (eps > 0|rising numbers)"):
        run(BOX, eps, samples, runs)
