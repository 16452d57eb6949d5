"""Searches: all zeros and nothing else, by seeds; and the plain search's tolerances."""

import numpy as np
import pytest

from experiments.zeta import balls, search
from experiments.zeta.box import Box
from experiments.zeta.eta import Eta
from experiments.zeta.euler_maclaurin import EulerMaclaurin
from experiments.zeta.float32_phase import Float32Phase
from experiments.zeta.functions import DAVENPORT_HEILBRONN, ZETA
from experiments.zeta.search import Windows, cross_entropy, even_windows, find, windows
from experiments.zeta.taylor import Taylor
from experiments.zeta.zeros import solve
from tests.zeta.conftest import CONTROL, ZEROS
from tests.zeta.truth import AROUND_1000, LEHMER, OFF_LINE, ON_LINE
from tests.zeta.truth import ZEROS as HEIGHTS

EXPECTED = np.stack([np.full(30, 0.5), HEIGHTS[:30]], -1)


def never(box: Box) -> int:
    raise AssertionError("no part of a box was to be counted")


class TestSolved:
    def test_all_zeros_and_nothing_else(self, solved):
        result = solved["zeta"]
        assert result.count == len(result.zeros) == result.scan_count == 30
        np.testing.assert_allclose(result.zeros, EXPECTED, rtol=0, atol=1e-10)
        assert result.largest_error < 1e-10
        assert all(result.proved)
        assert all(result.on_line)
        assert not any(result.off_line)
        assert result.certificate == "proved in this box"

    def test_costs(self, solved):
        """The search is dearer than random starts, and those than a scan; C11."""
        for result in solved.values():
            assert result.scan_evaluations < result.ablation_evaluations < result.evaluations
        assert solved["zeta"].evaluations <= 6000
        assert solved["control"].evaluations <= 3000

    def test_control(self, solved):
        """C12: zeros off the line are found and proved to be off it."""
        result = solved["control"]
        mirrored = 1 - OFF_LINE.conjugate()
        expected = [0.5 + 1j * t for t in ON_LINE] + [OFF_LINE, mirrored]
        found = np.array(result.zeros) @ [1, 1j]
        assert result.count == len(found) == 7
        for zero in expected:
            assert np.abs(found - zero).min() <= 1e-10
        assert all(result.proved)
        assert sum(result.on_line) == 5
        assert [off for off, s in zip(result.off_line, found, strict=True) if s.real != 0.5]
        assert sum(result.off_line) == 2
        # The scan of the line cannot see them.
        assert result.scan_count == 5


def test_windows_cover_the_box():
    parts = windows(ZETA, ZEROS)
    low, high = parts.anchor + parts.low[:, 1], parts.anchor + parts.high[:, 1]
    assert low[0] == pytest.approx(10)
    assert high[-1] == pytest.approx(102)
    assert (high[:-1] > low[1:]).all()
    assert 40 <= len(low) <= 50


def test_windows_stay_within_reach_of_their_anchors():
    parts = windows(ZETA, Box(0.05, 0.95, 10, 40), 1.0)
    assert np.abs(parts.high[:, 1]).max() == pytest.approx(0.75)


@pytest.mark.slow
def test_by_the_series():
    box = Box(0.05, 0.95, 10, 40)
    found = find(ZETA, Eta(40), box, 6, never, 0)
    np.testing.assert_allclose(found.zeros, EXPECTED[:6], rtol=0, atol=1e-10)


@pytest.mark.slow
@pytest.mark.parametrize("rounds", [4, 1])
def test_twenty_seeds(rounds, solved):
    evaluator, cost = EulerMaclaurin(ZETA, ZEROS.t_high), []
    for seed in range(20):
        found = find(ZETA, evaluator, ZEROS, 30, never, seed, rounds)
        np.testing.assert_allclose(found.zeros, EXPECTED, rtol=0, atol=1e-10)
        cost.append(found.evaluations)
    assert np.mean(cost) <= {4: 6000, 1: 2500}[rounds]


@pytest.mark.slow
def test_ten_seeds_of_the_control(solved):
    evaluator = EulerMaclaurin(DAVENPORT_HEILBRONN, CONTROL.t_high)
    for seed in range(10):
        found = find(DAVENPORT_HEILBRONN, evaluator, CONTROL, 7, never, seed)
        assert len(found.zeros) == 7
        np.testing.assert_allclose(found.zeros, solved["control"].zeros, rtol=0, atol=1e-10)
        assert found.evaluations <= 3000


@pytest.mark.slow
def test_lehmer():
    box, cost = Box(0.05, 0.95, 7004.5, 7005.5), []
    evaluator = Taylor(ZETA, 0.8)
    for seed in range(20):
        found = find(ZETA, evaluator, box, 2, never, seed)
        expected = [(0.5, t) for t in LEHMER]
        np.testing.assert_allclose(found.zeros, expected, rtol=0, atol=2e-11)
        cost.append(found.evaluations)
    assert np.mean(cost) <= 600


@pytest.mark.slow
def test_near_600269():
    result = solve(ZETA, Box(0.05, 0.95, 600269.5, 600270.0))
    assert result.count == len(result.zeros) == 1
    assert result.proved == result.on_line == [True]
    assert result.largest_error is not None
    assert result.largest_error <= 1e-9


@pytest.mark.slow
def test_a_box_that_ten_passes_do_not_empty_is_cut(monkeypatch):
    """C5: certified bisection."""
    monkeypatch.setattr(search, "_HEIGHT", 100.0)
    monkeypatch.setattr(search, "_PASSES", 2)
    counted = []

    def count(box: Box) -> int:
        counted.append(box)
        return int(((box.t_low < HEIGHTS) & (box.t_high > HEIGHTS)).sum())

    box = Box(0.05, 0.95, 10.0, 33.0)
    found = find(ZETA, EulerMaclaurin(ZETA, 33), box, 5, count, 0)
    np.testing.assert_allclose(found.zeros, EXPECTED[:5], rtol=0, atol=1e-10)
    assert found.bisections >= 1
    assert len(counted) == 2 * found.bisections


def test_an_evaluator_is_not_asked_beyond_its_trust():
    with pytest.raises(ValueError, match="is to be trusted within"):
        find(ZETA, EulerMaclaurin(ZETA, 2000), Box(0.05, 0.95, 1001, 1003), 3, never, 0)


def accepted(parts: Windows, best, tau: float) -> np.ndarray:
    """Zeros of a plain search: small enough, inside their window, merged within 1e-2."""
    x = np.asarray(best.x, np.float64)
    inside = ((x > parts.low + 1e-6) & (x < parts.high - 1e-6)).all(-1)
    kept = x[inside & (np.asarray(best.value) <= tau)]
    anchors = parts.anchor[inside & (np.asarray(best.value) <= tau)]
    points = sorted(zip(kept[:, 1] + anchors, kept[:, 0] + 0.5, strict=True))
    merged: list[tuple[float, float]] = []
    for point in points:
        if not merged or point[0] - merged[-1][0] > 1e-2:
            merged.append(point)
    return np.array(merged)


def absolute(parts: Windows) -> Windows:
    """The same windows with anchor 0."""
    shift = np.stack([np.zeros_like(parts.anchor), parts.anchor], -1)
    return Windows(np.zeros_like(parts.anchor), parts.low + shift, parts.high + shift)


@pytest.mark.slow
class TestPlain:
    """C1 to C4, C6, C8 and C10: no polish."""

    PARTS = even_windows(ZEROS, 1.0)

    def check(self, found: np.ndarray, dt, dsigma: float):
        assert len(found) == 30
        assert (np.abs(found[:, 0] - HEIGHTS[:30]) <= dt).all()
        assert np.abs(found[:, 1] - 0.5).max() <= dsigma

    def test_float64(self):
        """C1."""
        best = cross_entropy(EulerMaclaurin(ZETA, 102), self.PARTS, 0, rounds=40)
        self.check(accepted(self.PARTS, best, 1e-8), 1e-11, 1e-11)

    def test_float64_by_the_series(self):
        """C1."""
        for seed in range(20):
            best = cross_entropy(Eta(102), self.PARTS, seed, rounds=40)
            self.check(accepted(self.PARTS, best, 1e-8), 1e-11, 1e-11)

    def test_float32_with_anchors(self):
        """C2."""
        for seed in range(20):
            best = cross_entropy(Eta(102, "float32"), self.PARTS, seed, rounds=25, floor=1e-8)
            self.check(accepted(self.PARTS, best, 1e-4), 2e-6, 2e-6)

    @pytest.mark.parametrize(
        ("phase", "tau", "ulps", "dsigma"), [("split", 1e-4, 1, 2e-5), ("naive", 1e-3, 3, 2e-5)]
    )
    def test_float32_without_anchors(self, phase, tau, ulps, dsigma):
        # The naive phase is not to be trusted beyond t = 100.
        top = 100 if phase == "naive" else 102
        parts = absolute(even_windows(Box(0.05, 0.95, 60, top), 1.0))
        best = cross_entropy(Float32Phase(top, phase), parts, 0, rounds=25, floor=4e-6)
        found = accepted(parts, best, tau)
        expected = HEIGHTS[(HEIGHTS > 60) & (top > HEIGHTS)]
        assert len(found) == len(expected)
        ulp = np.spacing(expected.astype(np.float32)).astype(float)
        assert (np.abs(found[:, 0] - expected) <= ulps * ulp).all()
        assert np.abs(found[:, 1] - 0.5).max() <= dsigma

    @pytest.mark.parametrize(
        ("evaluator", "top"), [(Eta(1000, "float32"), 1000), (Taylor(ZETA, 0.8, "float32"), 1002)]
    )
    def test_near_1000_beyond_what_a_float32_height_can_tell(self, evaluator, top):
        """C6, whose last zero lies beyond the trust of the series."""
        parts = even_windows(Box(0.05, 0.95, 990, top), 0.5)
        expected = AROUND_1000[top > AROUND_1000]
        for seed in range(5):
            best = cross_entropy(evaluator, parts, seed, rounds=25, floor=1e-8)
            found = accepted(parts, best, 1e-4)
            assert len(found) == len(expected)
            assert np.abs(found[:, 0] - expected).max() <= 2e-6
            assert np.abs(found[:, 1] - 0.5).max() <= 2e-6
        assert np.spacing(np.float32(995)) / 10 > 2e-6

    def test_off_the_line_it_ends_on_the_boundary(self):
        parts = even_windows(Box(0.6, 0.95, 10, 40), 1.0)
        best = cross_entropy(EulerMaclaurin(ZETA, 40), parts, 0, rounds=40)
        index = int(np.argmin(best.value))
        assert best.value[index] == pytest.approx(0.0761859009, abs=2e-9)
        assert best.x[index, 0] + 0.5 == pytest.approx(0.6, abs=1e-6)
        assert best.x[index, 1] + parts.anchor[index] == pytest.approx(14.133938, abs=1e-4)

    def test_few_samples_miss_zeros(self):
        """They contract before they are there: 30 miss some for 9 of 10 seeds, 50 none."""
        sizes = {"rounds": 25, "samples": 30, "elites": 3, "floor": 1e-8}
        searches = [
            cross_entropy(Eta(102, "float32"), self.PARTS, seed, **sizes) for seed in range(3)
        ]
        assert min(len(accepted(self.PARTS, best, 1e-4)) for best in searches) < 30


@pytest.mark.slow
def test_near_1000():
    box = Box(0.05, 0.95, 990, 1000)
    found = find(ZETA, EulerMaclaurin(ZETA, 1000), box, balls.count(ZETA, box), never, 0)
    np.testing.assert_allclose(found.zeros[:, 1], AROUND_1000[:9], rtol=0, atol=1e-10)
