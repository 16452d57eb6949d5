"""Rounding: against JAX's own, against float32, and the tables of what it does."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from experiments.zeta import precision
from experiments.zeta.box import Box
from experiments.zeta.functions import DAVENPORT_HEILBRONN, ZETA
from experiments.zeta.precision import FORMATS, fixed_rms, resolvable, rms_error, rounded
from experiments.zeta.quantised import reported_sigmas
from tests.zeta.truth import OFF_LINE, ZEROS


@pytest.mark.parametrize("bits", [6, 10, 23, 40])
def test_rounding_is_that_of_jax(bits, rng):
    x = rng.normal(size=2000) * 10.0 ** rng.integers(-5, 5, 2000)
    expected = jax.lax.reduce_precision(jnp.asarray(x), 11, bits)
    np.testing.assert_array_equal(rounded(x, bits), expected)
    if bits == 23:
        np.testing.assert_array_equal(rounded(x, bits), x.astype(np.float32))


SWEEP = {6: 1.26, 8: 0.339, 12: 3.12e-2, 16: 1.49e-3, 20: 1.02e-4, 30: 1.03e-7, 40: 9.0e-11}


@pytest.fixture(scope="module")
def errors():
    with jax.enable_x64(True):
        return {bits: rms_error(bits, 0) for bits in (*SWEEP, 23, 45)}


class TestSweep:
    """Q1."""

    def test_size(self, errors):
        for bits, expected in SWEEP.items():
            assert errors[bits] == pytest.approx(expected, rel=0.3)

    def test_slope(self, errors):
        bits = [b for b in errors if 12 <= b <= 45]
        slope = np.polyfit(bits, [np.log2(errors[b]) for b in bits], 1)[0]
        assert -1.05 <= slope <= -0.95


@pytest.fixture(scope="module")
def rows():
    with jax.enable_x64(True):
        # To all digits of a float64.
        zeros = precision.first_zeros()
        np.testing.assert_allclose(zeros, ZEROS[:30], rtol=0, atol=1e-11)
        found = [precision.on_grid(kind, zeros) for kind in FORMATS]
    return {row["format"]: row for row in found}


class TestGrid:
    """Q2: the nearest number to the first zero, and zeta there."""

    EXPECTED = {
        "bf16": (14.125, 0.0625, 9.72514e-3, 7.7074155e-3, 0.587),
        "fp16": (14.1328125, 0.0078125, 1.91264e-3, 1.5167932e-3, 7.05e-2),
        "fp32": (14.134725570678711, 9.5367e-7, 4.28944e-7, 3.4022143e-7, 1.11e-5),
    }

    @pytest.mark.parametrize("name", EXPECTED)
    def test_values(self, name, rows):
        row, (nearest, step, distance, zeta, worst) = rows[name], self.EXPECTED[name]
        assert row["nearest"] == nearest
        assert row["step"] == pytest.approx(step, rel=1e-4)
        assert row["distance"] == pytest.approx(distance, rel=1e-4)
        assert row["zeta"] == pytest.approx(zeta, rel=1e-4)
        assert row["worst_zeta"] == pytest.approx(worst, rel=5e-3)

    def test_float64_is_never_exactly_zero_for_all(self, rows):
        assert rows["fp64"]["nearest"] == pytest.approx(14.134725141734695, abs=2e-15)
        assert 1e-15 < rows["fp64"]["worst_zeta"] < 1e-12


@pytest.mark.parametrize(
    ("bits", "expected"),
    [(4, 0.277), (8, 0.261), (12, 0.249), (16, 0.282), (20, 0.258), (24, 0.298)],
)
def test_fixed_point(bits, expected):
    """Q3."""
    found = fixed_rms(bits, ZEROS[:30])
    assert found == pytest.approx(expected, abs=1e-3)
    assert found == pytest.approx(12**-0.5, abs=0.06)


@pytest.mark.parametrize(
    ("name", "height"), [("bf16", 32), ("fp16", 128), ("fp32", 2**19), ("fp64", 2**46)]
)
def test_resolvable(name, height):
    """Q4."""
    (kind,) = (kind for kind in FORMATS if kind.name == name)
    assert resolvable(kind) == height


@pytest.mark.slow
def test_coarse_sigma_puts_zeros_exactly_on_the_line():
    """Q5: on 1/2, or on the step next to where they are."""
    zeta = reported_sigmas(ZETA, Box(0.05, 0.95, 10, 30), 6, 0)
    np.testing.assert_array_equal(zeta, [0.5, 0.5, 0.5])
    control = reported_sigmas(DAVENPORT_HEILBRONN, Box(0.05, 0.95, 84.5, 88.5), 6, 0)
    # A search per window finds one of the pair, next to where it is.
    steps = {np.round(64 * sigma) / 64 for sigma in (OFF_LINE.real, 1 - OFF_LINE.real)}
    assert {0.5} < set(control) <= {0.5} | steps
