"""Areas that are known exactly, estimates of them, and two ways to get them wrong."""

import numpy as np
import pytest

from experiments.zeta import rare
from experiments.zeta.box import Box
from experiments.zeta.rare import estimate, exact_probability, mixture, run, unweighted
from tests.zeta.truth import AREAS, SHARES, SLOPES, ZEROS

BOX = Box(0.0, 1.0, 10.0, 30.0)


@pytest.mark.parametrize("eps", AREAS)
def test_exact_areas(eps):
    assert exact_probability(BOX, ZEROS[:3], eps) == pytest.approx(AREAS[eps], rel=3e-8)


def test_shares_and_leading_order():
    parts = SLOPES[:3] ** -2
    np.testing.assert_allclose(parts / parts.sum(), SHARES, atol=1e-6)
    assert np.pi * 1e-6 * parts.sum() / 20 == pytest.approx(AREAS[1e-3], rel=1e-6)


class TestMixture:
    """R2."""

    @pytest.mark.slow
    @pytest.mark.parametrize("eps", [0.01, 1e-6])
    def test_eight_runs(self, eps):
        for seed in range(8):
            event = estimate(BOX, mixture(BOX, 3), eps, seed)
            assert event.reached
            assert len(event.levels) <= {0.01: 6, 1e-6: 13}[eps]
            assert abs(event.probability - AREAS[eps]) <= 4 * event.standard_error
            assert event.relative_error < 0.006
            means = np.sort(np.asarray(event.proposal.mean)[:, 1])
            np.testing.assert_allclose(means, ZEROS[:3], atol=5e-3)
            assert event.hits > 0.7 * event.draws

    @pytest.mark.slow
    def test_result(self):
        result = run(BOX, 1e-6)
        assert result.reached
        assert result.exact == pytest.approx(AREAS[1e-6], rel=3e-8)
        assert result.ratio == pytest.approx(result.estimate / result.exact)
        assert abs(result.estimate - result.exact) <= 4 * result.standard_error
        assert result.naive_cost == pytest.approx(2.2e16, rel=0.01)
        hits = np.array(result.hits_per_zero)
        np.testing.assert_allclose(hits / hits.sum(), SHARES, atol=0.03)
        assert "ratio" in rare.describe(result)


@pytest.mark.slow
def test_more_components_than_zeros(monkeypatch):
    monkeypatch.setattr(rare, "SAMPLES", 1000)
    event = estimate(BOX, mixture(BOX, 6), 0.01, 0)
    assert abs(event.probability - AREAS[0.01]) <= 4 * event.standard_error


@pytest.mark.slow
def test_one_normal_stalls(monkeypatch):
    """R3: with likelihood ratios a single normal distribution cannot follow three regions."""
    monkeypatch.setattr(rare, "SAMPLES", 1000)
    event = estimate(BOX, mixture(BOX, 1), 0.01, 0)
    assert len(event.levels) == 60
    assert event.hits < 100
    event = estimate(BOX, mixture(BOX, 1), 1e-6, 0)
    assert not event.reached
    assert event.probability == 0


@pytest.mark.slow
def test_without_likelihood_ratios_a_wrong_number_looks_precise():
    """R4: it collapses to one zero and returns that one's share with a small standard error."""
    for seed in range(3):
        event = estimate(BOX, unweighted(BOX), 0.01, seed)
        assert abs(event.probability / AREAS[0.01] - SHARES[0]) < 0.02
        assert event.relative_error < 0.01


@pytest.mark.parametrize(
    ("box", "eps", "message"),
    [
        (BOX, 0.0, "expected eps > 0, got 0"),
        (BOX, -1.0, "expected eps > 0, got -1"),
        (BOX, float("nan"), "expected eps > 0, got nan"),
        (BOX, 0.5, "expected eps for which|single loops"),
        (Box(0.0, 1.0, 1.0, 10.0), 0.01, "a box with zeros on the line"),
        (Box(0.6, 1.0, 10.0, 30.0), 0.01, "expected all zeros"),
        (Box(0.0, 1.0, 2000.0, 2002.0), 0.01, "is to be trusted within"),
    ],
)
def test_refused(box, eps, message):
    with pytest.raises(ValueError, match=message):
        run(box, eps)
