"""What balls prove, and what they refuse to."""

import pytest

from experiments.zeta import balls
from experiments.zeta.box import Box
from experiments.zeta.count import count as float_count
from experiments.zeta.euler_maclaurin import EulerMaclaurin
from experiments.zeta.functions import DAVENPORT_HEILBRONN, ZETA
from tests.zeta.truth import LEHMER, OFF_LINE, ON_LINE, ZEROS

PARTS = {
    (0.6, 0.95, 80, 90): 1,
    (0.05, 0.4, 80, 90): 1,
    (0.4, 0.6, 80, 90): 5,
    (0.05, 0.95, 80, 90): 7,
}
COUNTS = {15: 1, 30: 3, 50: 10, 100: 29, 102: 30}


@pytest.mark.parametrize("top", COUNTS)
def test_float_count(top):
    """C7."""
    assert float_count(EulerMaclaurin(ZETA, top), Box(0.05, 0.95, 10, top)) == COUNTS[top]


def test_float_count_above_100():
    assert float_count(EulerMaclaurin(ZETA, 200), Box(0.05, 0.95, 100, 200)) == 50


@pytest.mark.parametrize("numbers", PARTS)
def test_float_count_of_the_control(numbers):
    evaluator = EulerMaclaurin(DAVENPORT_HEILBRONN, 90)
    assert float_count(evaluator, Box(*numbers)) == PARTS[numbers]


def test_count_off_the_line():
    """C8: nothing there."""
    box = Box(0.6, 0.95, 10, 30)
    assert float_count(EulerMaclaurin(ZETA, 30), box) == balls.count(ZETA, box) == 0


def test_proved_count():
    assert balls.count(ZETA, Box(0.05, 0.95, 10, 30)) == 3


@pytest.mark.slow
@pytest.mark.parametrize("numbers", PARTS)
def test_proved_count_of_the_control(numbers):
    assert balls.count(DAVENPORT_HEILBRONN, Box(*numbers)) == PARTS[numbers]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("function", "numbers", "number"),
    [
        (ZETA, (0.05, 0.95, 100, 200), 50),
        (ZETA, (0.05, 0.95, 7004.5, 7005.5), 2),
        (DAVENPORT_HEILBRONN, (0.6, 0.95, 10, 80), 0),
    ],
)
def test_proved_count_elsewhere(function, numbers, number):
    assert balls.count(function, Box(*numbers)) == number


class TestContourThroughAZero:
    def test_balls(self):
        with pytest.raises(ValueError, match=r"a zero of zeta lies on the boundary.*14\.1347"):
            balls.count(ZETA, Box(0.05, 0.5, 14.0, 14.3))

    def test_float(self):
        with pytest.raises(ValueError, match="a zero lies on the boundary of"):
            float_count(EulerMaclaurin(ZETA, 15), Box(0.05, 0.5, 13.5, 15))


@pytest.mark.parametrize("t", [*ZEROS[[0, 14, 30]], *LEHMER])
def test_a_zero_on_the_line(t):
    proof = balls.prove(ZETA, 0.5 + 1e-12, t + 1e-10)
    assert proof.on_line
    assert not proof.excludes_half
    assert proof.t == pytest.approx(t, abs=5e-12)
    assert proof.radius < 1e-13


@pytest.mark.parametrize("sigma", [OFF_LINE.real, 1 - OFF_LINE.real])
def test_a_zero_off_the_line(sigma):
    proof = balls.prove(DAVENPORT_HEILBRONN, sigma, OFF_LINE.imag)
    assert proof.excludes_half
    assert not proof.on_line
    assert proof.sigma == pytest.approx(sigma, abs=1e-11)


@pytest.mark.parametrize("t", ON_LINE)
def test_a_zero_of_the_control_on_the_line(t):
    assert balls.prove(DAVENPORT_HEILBRONN, 0.5, t).on_line


@pytest.mark.parametrize(
    ("sigma", "t", "radius"),
    [(0.6, 14.1347, None), (0.5, 14.5, None), (0.5, 14.1347, 1.0), (0.5, 7005.08, 0.05)],
    ids=["off the zero", "no zero", "ball too large", "two zeros"],
)
def test_no_proof(sigma, t, radius):
    with pytest.raises(ValueError, match="no proof of one zero of zeta"):
        balls.prove(ZETA, sigma, t, radius)
