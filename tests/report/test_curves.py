"""The loss figure, where runs diverge."""

import math

import pytest

from egattn.report import curves
from egattn.report.runs import load_runs
from tests.synthetic_runs import entropies, make_run


@pytest.fixture
def limits(tmp_path):
    """The loss axis of runs with these losses at steps 10, 20, 30, and whether it is cut."""

    def draw(*runs: list[float], evaluated: dict[int, float] | None = None):
        paths = [
            make_run(tmp_path / str(i), entropies(2, 2), losses=x, evaluated=evaluated or {})
            for i, x in enumerate(runs)
        ]
        plot = curves.loss(load_runs(paths))
        assert plot is not None
        return *plot.figure.axes[0].get_ylim(), "cut off" in plot.caption

    return draw


def test_a_diverged_run_does_not_flatten_the_others(limits):
    # Of 6 to 2 at the start and the end: a twentieth more on either side.
    assert limits([5.0, 4.0, 3.5], [6.0, 2.0, 2000.0]) == pytest.approx((1.8, 6.2, True))


def test_a_validation_after_the_divergence_is_no_start(limits):
    found = limits([6.0, 2.0, 2000.0], evaluated={30: 500.0})
    assert found == pytest.approx((1.8, 6.2, True))


@pytest.mark.parametrize("losses", [[6.0, math.nan, 2.0], [6.0, 9.0, 2.0], [6.0, 20.0, 2000.0]])
def test_otherwise_all_is_shown(limits, losses):
    low, high, cut = limits(losses)
    assert not cut
    assert low < 6 < high
    assert high > max(x for x in losses if x == x)
