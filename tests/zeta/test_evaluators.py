"""Each evaluator against 40-digit values, balls, and another formula; and where it refuses."""

import flint
import jax
import numpy as np
import pytest

from experiments.zeta.box import Box
from experiments.zeta.eta import Eta, chebyshev_sums, weights
from experiments.zeta.euler_maclaurin import EulerMaclaurin
from experiments.zeta.evaluator import at
from experiments.zeta.float32_phase import Float32Phase
from experiments.zeta.functions import DAVENPORT_HEILBRONN, ZETA
from experiments.zeta.riemann_siegel import hardy_z, main_sum, theta
from experiments.zeta.taylor import Taylor
from tests.zeta.truth import OFF_LINE, ON_LINE, POINTS, ZEROS

LOW = [s for s in POINTS if s.imag <= 100]
(HIGH,) = [s for s in POINTS if s.imag > 100]


def balls(s: np.ndarray) -> np.ndarray:
    return np.array([complex(flint.acb(float(x.real), float(x.imag)).zeta()) for x in s])


def points(rng, low: float, high: float, count: int, sides=(0.05, 0.95)) -> np.ndarray:
    return rng.uniform(*sides, count) + 1j * rng.uniform(low, high, count)


class TestPoints:
    """Z1."""

    @pytest.mark.parametrize("s", LOW)
    @pytest.mark.parametrize("evaluator", [Eta(100), EulerMaclaurin(ZETA, 100)])
    def test_float64(self, s, evaluator):
        assert abs(at(evaluator, s) - POINTS[s]) <= 1e-12

    @pytest.mark.parametrize("evaluator", [Eta(1000), EulerMaclaurin(ZETA, 1000)])
    def test_float64_at_1000(self, evaluator):
        assert abs(at(evaluator, HIGH) - POINTS[HIGH]) <= 1e-11

    @pytest.mark.parametrize("s", POINTS)
    def test_float32_with_anchors(self, s):
        # An anchor beside the point, so that the device has something to do.
        error = abs(at(Eta(1000, "float32"), s, s.imag - 0.25) - POINTS[s])
        assert error <= (3e-6 if s.imag <= 100 else 1e-5)


class TestSeries:
    """Z2."""

    def test_weights(self):
        assert chebyshev_sums(5) == [1, 51, 451, 1571, 2851, 3363]
        assert [chebyshev_sums(n)[-1] for n in range(1, 6)] == [3, 17, 99, 577, 3363]
        np.testing.assert_allclose(
            weights(3), [1 - 1 / 99, -(1 - 19 / 99), 1 - 67 / 99], rtol=1e-15
        )

    def test_two_formulas_agree(self, rng):
        for centre in (2, 60, 300, 999):
            s = points(rng, centre - 1, centre + 1, 50)
            difference = at(Eta(1000), s) - at(EulerMaclaurin(ZETA, 1000), s)
            assert np.abs(difference).max() <= 1e-11

    @pytest.mark.parametrize(("low", "high", "tolerance"), [(100, 102, 4e-6), (998, 1000, 4e-5)])
    def test_float32_over_the_whole_width(self, low, high, tolerance, rng):
        # An H200, whose exponential has fewer digits, is off by 4.9e-6 in the first.
        tolerance *= 1 if jax.default_backend() == "cpu" else 1.5
        s = points(rng, low, high, 100)
        assert np.abs(at(Eta(high, "float32"), s) - balls(s)).max() <= tolerance

    @pytest.mark.parametrize(("phase", "tolerance"), [("naive", 1e-4), ("split", 5e-6)])
    def test_float32_without_anchors(self, phase, tolerance, rng):
        t = rng.uniform(50, 100, 100).astype(np.float32).astype(float)
        u = (rng.uniform(0.3, 0.7, 100) - 0.5).astype(np.float32).astype(float)
        s = u + 0.5 + 1j * t
        error = np.abs(at(Float32Phase(100, phase), s, 0.0) - balls(s)).max()
        assert error <= tolerance
        assert phase == "split" or error > 5e-6


class TestRiemannSiegel:
    def test_the_angle_makes_zeta_real(self):
        """Z3."""
        t = np.linspace(15, 100, 20)
        values = np.array([at(Eta(100), 0.5 + 1j * x)[0] for x in t])
        z = np.exp(1j * theta(t)) * values
        assert np.abs(np.imag(z)).max() <= 1e-11
        assert np.real(z)[-1] == pytest.approx(2.6926970566645, abs=1e-11)
        np.testing.assert_allclose(theta(t), ZETA.theta(t), atol=1e-11)
        assert theta(np.array([100.0]))[0] == pytest.approx(87.972165231787, abs=1e-11)

    def test_lehmer_changes_its_sign_twice(self):
        """Z4."""
        t = 7005 + 0.0005 * np.arange(400)
        assert (np.diff(np.sign(hardy_z(t))) != 0).sum() == 2

    @pytest.mark.parametrize(
        ("low", "high", "tolerance"),
        [(200, 1e3, 5e-9), (1e3, 1e4, 1e-10), (1e4, 1e5, 2e-9), (1e5, 1e6, 2e-8)],
    )
    def test_against_balls(self, low, high, tolerance, rng):
        t = rng.uniform(low, high, 20)
        character = flint.dirichlet_char(1, 1)
        exact = [float(character.hardy_z(flint.acb(x)).real) for x in t]
        assert np.abs(hardy_z(t) - exact).max() <= tolerance

    def test_main_sum_in_float32_is_useless_so_high(self):
        t = np.linspace(999_000, 999_010, 40)
        low = main_sum(t.astype(np.float32), theta(t).astype(np.float32))
        assert np.abs(low - hardy_z(t)).max() > 0.1


class TestControl:
    def test_against_balls(self, rng):
        s = points(rng, 80, 90, 20)
        exact = np.array([complex(_control(flint.acb(float(x.real), float(x.imag)))) for x in s])
        assert np.abs(at(EulerMaclaurin(DAVENPORT_HEILBRONN, 90), s) - exact).max() <= 5e-13

    def test_functional_equation(self):
        t = np.linspace(10, 90, 30)
        f = at(EulerMaclaurin(DAVENPORT_HEILBRONN, 90), 0.5 + 1j * t)
        assert np.abs(np.imag(np.exp(1j * DAVENPORT_HEILBRONN.theta(t)) * f)).max() <= 1e-11

    def test_zeros(self):
        s = np.array([OFF_LINE, 1 - OFF_LINE.conjugate(), *(0.5 + 1j * np.array(ON_LINE))])
        assert np.abs(at(EulerMaclaurin(DAVENPORT_HEILBRONN, 90), s)).max() <= 1e-10


def _control(s):
    """Written anew: xi by its radicals, and the four residues."""
    five = flint.arb(5).sqrt()
    xi = ((10 - 2 * five).sqrt() - 2) / (five - 1)
    terms = ((1, 1), (2, xi), (3, -xi), (4, -1))
    return sum(c * s.zeta(flint.acb(a) / 5) for a, c in terms) / flint.acb(5) ** s


class TestTaylor:
    @pytest.mark.parametrize(
        ("anchor", "radius", "dtype", "tolerance"),
        [
            (14.0, 0.78, "float64", 1e-14),
            (100.0, 0.78, "float64", 1e-12),
            (100.0, 0.78, "float32", 3e-6),
            (7005.0, 0.6, "float64", 1e-9),
        ],
    )
    def test_against_balls(self, anchor, radius, dtype, tolerance, rng):
        z = rng.uniform(0, radius, 60) * np.exp(2j * np.pi * rng.uniform(0, 1, 60))
        z = z[np.abs(z.real) < 0.5]
        s = 0.5 + z + 1j * anchor
        found = at(Taylor(ZETA, radius, dtype), s, anchor)
        assert np.abs(found - balls(s)).max() <= tolerance

    def test_of_the_control(self):
        found = at(Taylor(DAVENPORT_HEILBRONN, 0.6), np.array([OFF_LINE]), 85.5)
        assert abs(found[0]) <= 1e-10


REFUSED = {
    "eta beyond sigma 0.95": (Eta(20), 0.96 + 15j, None),
    "eta beyond t 1000": (Eta(2000), 0.5 + 1001j, None),
    "eta below t 1": (Eta(20), 0.5 + 0.5j, None),
    "eta far from its anchor": (Eta(20), 0.5 + 15j, 13.9),
    "naive float32 beyond t 100": (Float32Phase(200, "naive"), 0.5 + 101j, 0.0),
    "summation beyond t 1000": (EulerMaclaurin(ZETA, 2000), 0.5 + 1001j, None),
    "summation beyond sigma 1": (EulerMaclaurin(ZETA, 20), 1.01 + 15j, None),
    "a polynomial beyond its radius": (Taylor(ZETA, 0.5), 0.5 + 14.6j, 14.0),
}


@pytest.mark.parametrize("name", REFUSED)
def test_beyond_its_trust_an_evaluator_refuses(name):
    evaluator, s, anchor = REFUSED[name]
    with pytest.raises(ValueError, match=r"is to be trusted within|reaches not so far"):
        at(evaluator, s, anchor)


@pytest.mark.parametrize("t", [100.0, 2e6])
def test_riemann_siegel_refuses(t):
    with pytest.raises(ValueError, match="Riemann-Siegel formula is to be trusted within"):
        hardy_z(np.array([t]))


def test_a_radius_that_no_polynomial_of_96_terms_has():
    with pytest.raises(ValueError, match="expected a radius for which 96 terms suffice"):
        Taylor(ZETA, 30.0).tables(np.array([50.0]))


@pytest.mark.parametrize("evaluator", [Eta(20), EulerMaclaurin(ZETA, 20), Taylor(ZETA, 0.5)])
def test_float64_that_would_be_float32_is_refused(evaluator):
    with jax.enable_x64(False), pytest.raises(ValueError, match="expected float64"):
        evaluator.tables(np.array([15.0]))


def test_zeros_are_zeros():
    s = 0.5 + 1j * ZEROS[:30]
    assert np.abs(at(EulerMaclaurin(ZETA, 102), s)).max() <= 1e-11


@pytest.mark.parametrize(
    ("numbers", "closed", "message"),
    [
        ((0.5, 1.5, -1, 1), False, "without the pole at 1"),
        ((0.9, 0.1, 10, 20), False, "from low to high and not empty"),
        ((0.1, 0.9, 20, 20), False, "from low to high and not empty"),
        ((0.0, 0.9, 10, 20), False, r"sigma within \(0, 1\)"),
        ((-0.1, 0.9, 10, 20), True, r"sigma within \[0, 1\]"),
        ((0.1, 0.9, 10, float("nan")), False, "finite"),
    ],
)
def test_boxes_that_are_none(numbers, closed, message):
    with pytest.raises(ValueError, match=message):
        Box.of(numbers, closed=closed)
